"""The definition of every op in plain PyTorch: differentiable to any order, on any device.

The compiled kernels are tested against it, and it is tested against closed forms. It repeats the
formulas independently of csrc/core. Everything is computed in float32 (float64 where an input is
float64), whatever the input's type.
"""

from __future__ import annotations

from margin_ext.op_results import (
    ClassMargins,
    FirstOrderMargin,
    LogitGap,
    MarginLoss,
    SampleGap,
    SoftGap,
)
from margin_ext.reference.additive_margin import additive_margin_loss, log_odds
from margin_ext.reference.attack_step import attack_step
from margin_ext.reference.class_margins import class_margins
from margin_ext.reference.dual import dual_direction, dual_norm
from margin_ext.reference.gap import logit_gap
from margin_ext.reference.linear import linear_margin
from margin_ext.reference.loss import average_margin_loss, regularize, sample_margin_loss
from margin_ext.reference.margin import first_order_margin
from margin_ext.reference.orthogonality import orthogonality_penalty
from margin_ext.reference.sample_gap import sample_gap
from margin_ext.reference.soft_gap import soft_gap

__all__ = [
    "ClassMargins",
    "FirstOrderMargin",
    "LogitGap",
    "MarginLoss",
    "SampleGap",
    "SoftGap",
    "additive_margin_loss",
    "attack_step",
    "average_margin_loss",
    "class_margins",
    "dual_direction",
    "dual_norm",
    "first_order_margin",
    "linear_margin",
    "log_odds",
    "logit_gap",
    "orthogonality_penalty",
    "regularize",
    "sample_gap",
    "sample_margin_loss",
    "soft_gap",
]
