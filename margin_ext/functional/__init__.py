"""The ops as differentiable functions: compiled where a library serves the device.

Same names, arguments and results as ``margin_ext.reference``, which serves everything else: other
devices, missing libraries, and torch.func transforms (vmap and grad; there is no forward mode).
"""

from __future__ import annotations

from margin_ext.functional.direction import dual_direction
from margin_ext.functional.gap import gap_seed, logit_gap
from margin_ext.functional.loss import average_margin_loss
from margin_ext.functional.margin import first_order_margin
from margin_ext.functional.sample import sample_gap, sample_gap_seed, sample_margin_loss
from margin_ext.reference import MarginLoss, linear_margin, orthogonality_penalty, soft_gap

__all__ = [
    "MarginLoss",
    "average_margin_loss",
    "dual_direction",
    "first_order_margin",
    "gap_seed",
    "linear_margin",
    "logit_gap",
    "orthogonality_penalty",
    "sample_gap",
    "sample_gap_seed",
    "sample_margin_loss",
    "soft_gap",
]
