"""Measure and train the margin of classifiers: the distance from an input to the boundary.

Wu and Yu, "Understanding Adversarial Robustness: The Trade-off between Minimum and Average
Margin" (2019), as fused CPU and CUDA kernels with a pure PyTorch reference.

The package is loaded when the first of its names is used: `margin-ext train --help` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from margin_ext import functional, reference
    from margin_ext._api import *  # noqa: F403
    from margin_ext.ledger import MarginLedger
    from margin_ext.measurement.measure import measure
    from margin_ext.measurement.monitor import MarginMonitor
    from margin_ext.measurement.robust_accuracy import robust_accuracy
    from margin_ext.training.adversarial_training import AdversarialTraining

__version__ = "0.2.0"

__all__ = [
    "Additive",
    "AdversarialTraining",
    "Auto",
    "AverageMarginLoss",
    "BatchStatistics",
    "Detached",
    "Distance",
    "DoubleBackward",
    "FiniteDifference",
    "GradientMode",
    "LossOptions",
    "MarginLedger",
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

_MODULES = {
    "AdversarialTraining": "training",
    "MarginMonitor": "measurement",
    "measure": "measurement",
    "robust_accuracy": "measurement",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("functional", "reference"):
        return importlib.import_module(f"{__name__}.{name}")
    module = _MODULES.get(name, "_api")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
