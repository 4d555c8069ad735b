"""What a training step gives back."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from margin_ext.statistics import BatchStatistics

__all__ = ["RunOutput"]


class RunOutput(NamedTuple):
    """What :meth:`margin_ext.AverageMarginLoss.run` returns.

    Attributes:
        loss: Scalar; for reduction "none" [B], or [B, d1, ...]; call ``backward()`` on it.
        logits: [B, C] or [B, C, d1, ...], or one logit, as the model returned them.
        margin: What the regularizer saw [B], without a graph. With margin="logit_gap" dense logits
            have one at every position, [B, d1, ...].
        gap: Logit gap, of the same shape, without a graph.
        norm: Dual norm of the input gradient [B]; empty for margin="logit_gap".
        statistics: Minimum and average margin, accuracy and so on of the batch.
        output: All that the model returned in its first pass over the whole batch, with its graph:
            features and auxiliary losses, which can be added to the loss.
    """

    loss: Tensor
    logits: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics
    output: Any = None
