"""What a training step gives back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from margin_ext.statistics import BatchStatistics

__all__ = ["RunOutput"]


class RunOutput(NamedTuple):
    """What :meth:`margin_ext.AverageMarginLoss.run` returns.

    Attributes:
        loss: Scalar; for reduction "none" [B], or [B, d1, ...]; call ``backward()`` on it.
        logits: [B, C] or [B, C, d1, ...], as the model returned them.
        margin: What the regularizer saw [B], without a graph. With margin="logit_gap" dense logits
            have one at every position, [B, d1, ...].
        gap: Logit gap, of the same shape, without a graph.
        norm: Dual norm of the input gradient [B]; empty for margin="logit_gap".
        statistics: Minimum and average margin, accuracy and so on of the batch.
    """

    loss: Tensor
    logits: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics
