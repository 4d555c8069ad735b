"""The architectures of Wu and Yu (2019), with the parameter names of their checkpoints.

All take inputs in [0, 1] and have no forward of their own, so that tools that walk through layers
(certification, Lipschitz bounds, the test for linearity) understand them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

__all__ = [
    "AUTHORS_MODELS",
    "cifar_cnn",
    "cifar_mlp",
    "linear_classifier",
    "mnist_cnn",
    "mnist_mlp",
]


def linear_classifier(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """Z = W x + b."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(inputs, classes)))


def _mlp(inputs: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(inputs, 1024),
            softplus=nn.Softplus(),
            fc2=nn.Linear(1024, classes),
        )
    )


def mnist_mlp() -> nn.Sequential:
    """784-1024-10 with softplus, as in the authors' code."""
    return _mlp(784)


def cifar_mlp() -> nn.Sequential:
    """3072-1024-10 with softplus, as in the authors' code."""
    return _mlp(3072)


def _cnn(
    channels: tuple[int, int, int], features: int, hidden: int, dropout: float | None
) -> nn.Sequential:
    """Two blocks of two 3x3 convolutions without padding and a 2x2 max pool, three linear layers.

    Dropout layers have no parameters, so that the names fit with and without them.
    """
    given, first, second = channels
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(given, first, 3),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(first, first, 3),
        relu2=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv3=nn.Conv2d(first, second, 3),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(second, second, 3),
        relu4=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(features, hidden),
        relu5=nn.ReLU(),
    )
    if dropout is not None:
        layers["drop1"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(hidden, hidden)
    layers["relu6"] = nn.ReLU()
    if dropout is not None:
        layers["drop2"] = nn.Dropout(dropout)
    layers["fc3"] = nn.Linear(hidden, 10)
    return nn.Sequential(layers)


def mnist_cnn() -> nn.Sequential:
    """Convolutions 32, 32, pool, 64, 64, pool, then 200, 200, 10; inputs [B, 1, 28, 28]."""
    return _cnn((1, 32, 64), 1024, 200, None)


def cifar_cnn(dropout: float | None = 0.5) -> nn.Sequential:
    """Convolutions 64, 64, pool, 128, 128, pool, then 256, 256, 10; inputs [B, 3, 32, 32]."""
    return _cnn((3, 64, 128), 3200, 256, dropout)


AUTHORS_MODELS: dict[str, Callable[[], nn.Module]] = {
    "mnist_linear": lambda: linear_classifier(784),
    "mnist_mlp": mnist_mlp,
    "mnist_cnn": mnist_cnn,
    "cifar_linear": lambda: linear_classifier(3072),
    "cifar_mlp": cifar_mlp,
    "cifar_cnn": cifar_cnn,
}
