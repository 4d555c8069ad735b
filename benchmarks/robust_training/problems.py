"""The data, the networks and the schedules that methods are compared on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from margin_ext.data import load_data
from margin_ext.data.image_data import ImageData
from margin_ext.models.small_cnn import small_cnn
from margin_ext.training import Recipe

__all__ = ["PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Tuning:
    """The shorter trainings by which settings are chosen: images and epochs."""

    images: int
    epochs: int


@dataclass(frozen=True)
class Problem:
    """One data set and one network.

    Attributes:
        title: For tables.
        data: A data source, by name.
        network: With initial weights drawn from torch's generator.
        recipe: How all methods are trained; the seed is set for each run.
        images: Training images used, the first so many; None: all.
        tuning: How settings are chosen.
        eps: Radii of the l2 attacks, ascending.
        aim: The radius that settings are chosen by, one of eps.
        linf_eps: Radii of l_inf attacks that are reported beside them.
        narrowed: The settings tried here in place of a method's whole grid, to save time.
    """

    title: str
    data: str
    network: Callable[[], nn.Module]
    recipe: Recipe
    images: int | None
    tuning: Tuning
    eps: tuple[float, ...]
    aim: float
    linf_eps: tuple[float, ...]
    narrowed: Mapping[str, tuple[dict[str, float], ...]] = field(default_factory=dict)

    def load(self, folder: Path) -> ImageData:
        return load_data(self.data, folder).limited(train=self.images, held_out=None)

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()


def _mlp() -> nn.Module:
    """The authors' widths, with ReLU: its margins can be certified."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))


_CNN_SETTINGS = {
    "secant": ({"mu": 2.0, "tau": 1.25}, {"mu": 2.0, "tau": 1.5}),
    "boundary": ({"mu": 2.0, "tau": 1.25}, {"mu": 2.0, "tau": 1.5}),
    "double_backward": ({"mu": 2.0, "tau": 1.5}, {"mu": 2.0, "tau": 2.0}),
    "adversarial_1": ({"eps": 0.75}, {"eps": 1.0}),
    "authors_orthogonality": ({"tau": 40.0, "beta": 1e-3},),
    "penalty": ({"weight": 0.3}, {"weight": 1.0}),
}
# One each: nothing was tuned on CIFAR-10. With mu 8, as much times tau as on MNIST, neither the
# first-order margin nor the secant began to learn; nor did the former with 4.
_CIFAR_SETTINGS = {
    "secant": ({"mu": 2.0, "tau": 1.25},),
    "boundary": ({"mu": 2.0, "tau": 1.25},),
    "double_backward": ({"mu": 2.0, "tau": 1.25},),
    "adversarial_7": ({"eps": 1.0},),
    "adversarial_1": ({"eps": 1.0},),
    "adversarial_2": ({"eps": 1.0},),
    "authors_orthogonality": ({"tau": 10.0, "beta": 1e-3},),
    "penalty": ({"weight": 0.3},),
}

PROBLEMS: dict[str, Problem] = {
    "mnist_mlp": Problem(
        "MNIST, MLP 784-1024-10 with ReLU",
        "mnist",
        _mlp,
        Recipe(epochs=4, batch_size=128, learning_rate=0.1),
        None,
        Tuning(images=20_000, epochs=3),
        (1.0, 2.0),
        2.0,
        (0.1,),
    ),
    "mnist_cnn": Problem(
        "MNIST, CNN of two strided convolutions with GELU",
        "mnist",
        lambda: small_cnn((1, 28, 28)),
        Recipe(epochs=4, batch_size=128, learning_rate=0.1),
        30_000,
        Tuning(images=30_000, epochs=4),
        (1.0, 2.0),
        2.0,
        (0.1,),
        _CNN_SETTINGS,
    ),
    "cifar_cnn": Problem(
        "CIFAR-10 (10,000 images), CNN of two strided convolutions with GELU",
        "cifar10",
        lambda: small_cnn((3, 32, 32)),
        Recipe(epochs=15, batch_size=64, learning_rate=0.05),
        None,
        Tuning(images=10_000, epochs=8),
        (0.25, 0.5),
        0.5,
        (2 / 255,),
        _CIFAR_SETTINGS,
    ),
}
