"""The ops as differentiable functions: compiled where a library serves the device.

``margin_ext.reference`` has them too, with the same arguments and results. It serves everything
else: other devices, missing libraries, and torch.func transforms (vmap and grad; there is no
forward mode).
"""

from __future__ import annotations

from margin_ext.functional.additive_margin_loss import additive_margin_loss
from margin_ext.functional.attack_step import attack_step
from margin_ext.functional.average_margin_loss import average_margin_loss
from margin_ext.functional.class_gap import gap_cotangent
from margin_ext.functional.class_margins import class_margins
from margin_ext.functional.dual_direction import dual_direction
from margin_ext.functional.first_order_margin import first_order_margin
from margin_ext.functional.linear_margin import linear_margin
from margin_ext.functional.log_odds import log_odds
from margin_ext.functional.logit_gap import logit_gap
from margin_ext.functional.orthogonality_penalty import orthogonality_penalty
from margin_ext.functional.sample_gap import (
    sample_gap,
    sample_gap_cotangent,
    sample_margin_loss,
)
from margin_ext.functional.soft_gap import soft_gap
from margin_ext.op_results import ClassMargins, MarginLoss

__all__ = [
    "ClassMargins",
    "MarginLoss",
    "additive_margin_loss",
    "attack_step",
    "average_margin_loss",
    "class_margins",
    "dual_direction",
    "first_order_margin",
    "gap_cotangent",
    "linear_margin",
    "log_odds",
    "logit_gap",
    "orthogonality_penalty",
    "sample_gap",
    "sample_gap_cotangent",
    "sample_margin_loss",
    "soft_gap",
]
