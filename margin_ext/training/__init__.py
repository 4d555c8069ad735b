"""Training with margins: data, epochs that can be interrupted, single runs and comparisons."""

from __future__ import annotations

from margin_ext.data.image_data import DataError, ImageData, digits, mnist
from margin_ext.data.image_files import cifar10, npz
from margin_ext.training.comparison import Comparison, Contender
from margin_ext.training.loop import Recipe, Training
from margin_ext.training.objective import Objective

__all__ = [
    "Comparison",
    "Contender",
    "DataError",
    "ImageData",
    "Objective",
    "Recipe",
    "Training",
    "cifar10",
    "digits",
    "mnist",
    "npz",
]
