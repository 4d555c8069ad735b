"""Measure and train the margin of classifiers: the distance from an input to the boundary.

Wu and Yu, "Understanding Adversarial Robustness: The Trade-off between Minimum and Average
Margin" (2019), as fused CPU and CUDA kernels with a pure PyTorch reference.
"""

from __future__ import annotations

from margin_ext import reference
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import BatchStatistics

__version__ = "0.1.0"

__all__ = ["BatchStatistics", "Regularizer", "__version__", "reference"]
