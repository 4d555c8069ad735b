"""The data, the networks and the schedules that methods are compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from margin_ext.data import load_data
from margin_ext.data.augmentation import Augmentation
from margin_ext.data.image_data import ImageData
from margin_ext.models.small_cnn import small_cnn
from margin_ext.training import Recipe

__all__ = ["PROBLEMS", "Problem"]

_USUAL_RADII = (1.0, 1.25, 1.5)
_STEPS_OF_AN_EPOCH = 235  # of 30,000 images, 128 a step
_NONE = Augmentation()


@dataclass(frozen=True)
class Problem:
    """One data set and one network.

    Attributes:
        title: For tables.
        short: For columns of tables.
        data: A data source, by name.
        network: With initial weights drawn from torch's generator.
        recipe: How all methods are trained; the seed is set for each run.
        images: Training images used, the first so many; None: all.
        aim: The l2 radius at which robustness is wanted; figures are at half of it too.
        allowed_loss: Validation accuracy that a method may lack against the chosen 7-step
            adversarial training.
        targets: Classes toward which the search for the nearest adversarial example goes.
        radii: What methods with a radius may choose from, in units of the aim.
        warmup: Steps in which adversarial training's radius rises, where a network does not begin
            to learn at the whole radius.
        augmentation: Of the training images.
    """

    title: str
    short: str
    data: str
    network: Callable[[], nn.Module]
    recipe: Recipe
    images: int | None
    aim: float
    allowed_loss: float
    targets: int
    radii: tuple[float, ...] = _USUAL_RADII
    warmup: int = 0
    augmentation: Augmentation = _NONE

    @property
    def eps(self) -> tuple[float, float]:
        """The radii of the figures, ascending."""
        return self.aim / 2, self.aim

    def load(self, folder: Path) -> ImageData:
        return load_data(self.data, folder).limited(train=self.images, held_out=None)

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()


def _mlp() -> nn.Module:
    """The authors' widths, with ReLU: its margins can be certified."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))


def _relu_cnn() -> nn.Module:
    smooth = small_cnn((1, 28, 28))
    return nn.Sequential(*(nn.ReLU() if isinstance(m, nn.GELU) else m for m in smooth))


_MNIST = Problem(
    "MNIST, CNN of two strided convolutions with GELU",
    "MNIST CNN, GELU",
    "mnist",
    lambda: small_cnn((1, 28, 28)),
    Recipe(epochs=4, batch_size=128, learning_rate=0.1),
    images=30_000,
    aim=2.0,
    allowed_loss=0.002,
    targets=9,
)
_WITH_RELU = replace(_MNIST, radii=(0.75, *_USUAL_RADII))
_CIFAR = Problem(
    "CIFAR-10 (9,000 images), CNN of two strided convolutions with GELU",
    "CIFAR-10 subset, CNN",
    "cifar10",
    lambda: small_cnn((3, 32, 32)),
    Recipe(epochs=15, batch_size=64, learning_rate=0.05),
    images=None,
    aim=0.5,
    allowed_loss=0.01,
    targets=3,
)

PROBLEMS: dict[str, Problem] = {
    "mnist_cnn": _MNIST,
    "mnist_relu_cnn": replace(
        _WITH_RELU,
        title="MNIST, the same CNN with ReLU",
        short="MNIST CNN, ReLU",
        network=_relu_cnn,
        targets=3,
        warmup=_STEPS_OF_AN_EPOCH,
    ),
    "cifar_cnn": _CIFAR,
    "cifar_cnn_augmented": replace(
        _CIFAR,
        title=_CIFAR.title.replace("images", "images, shifted and mirrored"),
        short="CIFAR-10 subset augmented, CNN",
        augmentation=Augmentation(crop=4, flip=True),
    ),
    "mnist_mlp": replace(
        _WITH_RELU, title="MNIST, MLP 784-1024-10 with ReLU", short="MNIST MLP", network=_mlp
    ),
}
