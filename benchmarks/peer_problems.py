"""The networks and images on which the package is compared with other libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.models import resnet
from margin_ext.data import load_data
from margin_ext.models.small_cnn import small_cnn
from margin_ext.threat import ThreatModel

THREAT = ThreatModel(p=2, data_range=(0.0, 1.0))
_LEARNING_RATE, _BATCH = 0.05, 32

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A network in eval mode with frozen weights, and images that it classifies as their labels.

    Attributes:
        model: The network.
        x: Images in [0, 1], [B, ...].
        y: Labels [B].
        classes: C.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int


@dataclass(frozen=True)
class Network:
    """How a problem is made.

    Attributes:
        name: Unique.
        title: For the page.
        build: The network with random weights.
        shape: Of an image.
        classes: C.
        images: How many are kept.
        epochs: Passes over the training images; 0: weights stay random, images are noise, and
            labels are the network's own predictions.
        mnist: MNIST is used where it is at hand.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    classes: int
    images: int
    epochs: int = 0
    mnist: bool = False

    def problem(self, mnist: Path | None, kept: Path, device: str) -> Problem:
        """Make it, with weights from ``kept`` where an earlier run has left them there."""
        torch.manual_seed(0)
        model = self.build()
        if self.epochs:
            train, test = self._images(mnist)
        else:
            train = test = _noise(self.shape, 2 * self.images)
        if kept.exists():
            model.load_state_dict(torch.load(kept, weights_only=True))
        else:
            _train(model, train, self.epochs)
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), kept)
        model = model.eval().requires_grad_(False).to(device)
        x, y = (t.to(device) for t in test)
        x, y = x[: 2 * self.images], y[: 2 * self.images]
        with torch.no_grad():
            predicted = model(x).argmax(dim=1)
        if not self.epochs:
            y = predicted
        right = (predicted == y).nonzero().squeeze(1)[: self.images]
        return Problem(model, x[right], y[right], self.classes)

    def _images(self, mnist: Path | None) -> tuple[Pair, Pair]:
        """Training and test images: MNIST, or scikit-learn's digits enlarged to the same shape."""
        if mnist is not None:
            data = load_data("mnist", mnist).limited(train=10_000, held_out=None)
            return data.train, data.test
        data = load_data("digits")
        return self._enlarged(data.train), self._enlarged(data.test)

    def _enlarged(self, pair: Pair) -> Pair:
        x = interpolate(pair[0], self.shape[1:], mode="bilinear")
        return x.expand(-1, self.shape[0], -1, -1).contiguous(), pair[1]


def _noise(shape: tuple[int, ...], count: int) -> Pair:
    return torch.rand(count, *shape), torch.zeros(count, dtype=torch.long)


def _train(model: nn.Module, data: Pair, epochs: int) -> None:
    """Train; without epochs set BatchNorm's statistics, so that activations keep their scale."""
    x, y = data
    model.train()
    if not epochs:
        with torch.no_grad():
            for _ in range(10):
                model(torch.rand(8, *x.shape[1:]))
            # Otherwise all images would have the same nearest classes.
            model.eval()
            body, head = model[:-1], model[-1]  # type: ignore[index]
            head.bias.copy_(-head.weight @ body(torch.rand(8, *x.shape[1:])).mean(dim=0))
        return
    optimizer = torch.optim.SGD(model.parameters(), _LEARNING_RATE, momentum=0.9, nesterov=True)
    order = torch.cat([torch.randperm(len(y)) for _ in range(epochs)]).split(_BATCH)
    for step, rows in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / len(order))
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


NETWORKS = (
    Network(
        "mnist_cnn",
        "CNN of two convolutions, 28 x 28",
        lambda: small_cnn((1, 28, 28)),
        (1, 28, 28),
        10,
        100,
        epochs=3,
        mnist=True,
    ),
    Network(
        "resnet18",
        "ResNet-18, 32 x 32",
        lambda: resnet((2, 2, 2, 2), 64, 10, bottleneck=False, large=False),
        (3, 32, 32),
        10,
        4,
        epochs=2,
    ),
    Network(
        "resnet50",
        "ResNet-50, 224 x 224, 1000 classes",
        lambda: resnet((3, 4, 6, 3), 64, 1000, bottleneck=True, large=True),
        (3, 224, 224),
        1000,
        1,
    ),
)
QUICK_NETWORKS = (
    Network(
        "tiny_cnn",
        "smoke test",
        lambda: small_cnn((1, 8, 8)),
        (1, 8, 8),
        10,
        4,
        epochs=1,
    ),
)
