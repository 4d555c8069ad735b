"""What the loss returns, and how it can be reduced."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from margin_ext.statistics import BatchStatistics

__all__ = ["REDUCTIONS", "MarginLoss"]

# The order is that of `Reduction` in csrc/core/statistics.h.
REDUCTIONS = ("none", "mean", "sum")


class MarginLoss(NamedTuple):
    """Loss of a batch and what it was made of; only ``loss`` is differentiable.

    Attributes:
        loss: Scalar; for reduction "none" [B], of dense logits [B, d1, ...].
        margin: What the regularizer saw [B]: the first-order margin, or the gap without grad, which
            dense logits have at every position [B, d1, ...].
        gap: Logit gap, of the shape of margin.
        norm: Dual norm of the input gradient [B]; empty without grad.
        statistics: Minimum and average margin, accuracy and so on of the batch.
    """

    loss: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics
