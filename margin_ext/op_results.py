"""What the ops return: the same for the compiled ops and for the reference."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from margin_ext.statistics import BatchStatistics

__all__ = ["ClassMargins", "FirstOrderMargin", "LogitGap", "MarginLoss", "SampleGap", "SoftGap"]


class LogitGap(NamedTuple):
    """Logit gap of every sample, or of every position of dense logits.

    Attributes:
        gap: z_y - z_k [B] or [B, d1, ...]; positive iff classified correctly (k the runner-up).
        runner_up: The class k that the gap is measured to, of the same shape; -1 where ignored.
    """

    gap: Tensor
    runner_up: Tensor


class ClassMargins(NamedTuple):
    """First-order margins to K classes of every sample, in P threat norms.

    Attributes:
        margin: [P, B, K].
        norm: Dual norms of the gaps' gradients [P, B, K].
        nearest: The number of the class with the smallest margin, 0 to K - 1, int64 [P, B].
    """

    margin: Tensor
    norm: Tensor
    nearest: Tensor


class SoftGap(NamedTuple):
    """Gap of every row under a label that is a distribution.

    Attributes:
        gap: [N].
        nearest: The classes of the largest and the second largest logit, int64 [N, 2].
    """

    gap: Tensor
    nearest: Tensor


class SampleGap(NamedTuple):
    """Gap of every sample, and what it is measured to.

    Attributes:
        gap: [B]; NaN where all positions are ignored.
        of_positions: Gap of every position [B, d1, ...].
        fraction: The factor of each position's gap in the gap of its sample, [B, d1, ...].
        nearest: For class labels the runner-up of every position, int64 [N], -1 where ignored; for
            probabilities the classes of the two largest logits, int64 [N, 2].
    """

    gap: Tensor
    of_positions: Tensor
    fraction: Tensor
    nearest: Tensor


class FirstOrderMargin(NamedTuple):
    """First-order margin of every sample.

    Attributes:
        margin: a / max(||g||_q, eps) [B], signed: negative where the sample is misclassified.
        norm: ||g||_q [B].
    """

    margin: Tensor
    norm: Tensor


class MarginLoss(NamedTuple):
    """Loss of a batch and the parts that it was made of; only ``loss`` is differentiable.

    Attributes:
        loss: Scalar; for reduction "none" [B], of dense logits [B, d1, ...].
        margin: What the regularizer saw [B]: the first-order margin. Without grad it is the gap,
            which dense logits have at every position [B, d1, ...].
        gap: Logit gap, of the shape of margin.
        norm: Dual norm of the input gradient [B]; empty without grad.
        statistics: Minimum and average margin, accuracy and so on of the batch.
    """

    loss: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics
