"""What ``margin_ext`` offers but for measuring, which a training does not pay for."""

from __future__ import annotations

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
    Additive,
    Auto,
    Detached,
    Distance,
    DoubleBackward,
    FiniteDifference,
    GradientMode,
    Secant,
    register_gradient_mode,
)
from margin_ext.ledger import MarginLedger
from margin_ext.loss import AverageMarginLoss
from margin_ext.loss_options import LossOptions
from margin_ext.regularizers import Regularizer, register_regularizer
from margin_ext.statistics import BatchStatistics

__all__ = [
    "Additive",
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
    "Regularizer",
    "Secant",
    "average_margin_loss",
    "backend_info",
    "dual_direction",
    "first_order_margin",
    "functional",
    "linear_margin",
    "logit_gap",
    "orthogonality_penalty",
    "register_gradient_mode",
    "register_regularizer",
]
