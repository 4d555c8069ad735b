"""Measure and train the margin of classifiers: the distance from an input to the boundary.

Wu and Yu, "Understanding Adversarial Robustness: The Trade-off between Minimum and Average
Margin" (2019), as fused CPU and CUDA kernels with a pure PyTorch reference.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from margin_ext import functional
from margin_ext._backend_info import backend_info
from margin_ext.functional import (
    average_margin_loss,
    dual_direction,
    first_order_margin,
    linear_margin,
    logit_gap,
    orthogonality_penalty,
)
from margin_ext.gradient_modes import (
    Auto,
    Detached,
    DoubleBackward,
    FiniteDifference,
    GradientMode,
    Secant,
    register_gradient_mode,
)
from margin_ext.loss import AverageMarginLoss
from margin_ext.loss_options import LossOptions
from margin_ext.regularizers import Regularizer, register_regularizer
from margin_ext.statistics import BatchStatistics

if TYPE_CHECKING:
    from margin_ext import reference
    from margin_ext.measurement.measure import measure
    from margin_ext.measurement.monitor import MarginMonitor
    from margin_ext.measurement.robust_accuracy import robust_accuracy

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "AverageMarginLoss",
    "BatchStatistics",
    "Detached",
    "DoubleBackward",
    "FiniteDifference",
    "GradientMode",
    "LossOptions",
    "MarginMonitor",
    "Regularizer",
    "Secant",
    "__version__",
    "average_margin_loss",
    "backend_info",
    "dual_direction",
    "first_order_margin",
    "functional",
    "linear_margin",
    "logit_gap",
    "measure",
    "orthogonality_penalty",
    "reference",
    "register_gradient_mode",
    "register_regularizer",
    "robust_accuracy",
]

_MEASUREMENT = ("MarginMonitor", "measure", "robust_accuracy")


def __getattr__(name: str) -> Any:
    # Training does not pay for importing what measures.
    if name in _MEASUREMENT:
        return getattr(importlib.import_module("margin_ext.measurement"), name)
    if name == "reference":
        return importlib.import_module("margin_ext.reference")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
