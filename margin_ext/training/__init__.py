"""Training with margins: epochs that can be interrupted, single runs and comparisons."""

from __future__ import annotations

from margin_ext.training.comparison import Comparison, Contender
from margin_ext.training.loop import Recipe, Training
from margin_ext.training.objective import Objective

__all__ = [
    "Comparison",
    "Contender",
    "Objective",
    "Recipe",
    "Training",
]
