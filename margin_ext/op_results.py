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

    Example:
        >>> from margin_ext import logit_gap
        >>> found = logit_gap(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        >>> found.gap, found.runner_up
        (tensor([1.]), tensor([2]))
    """

    gap: Tensor
    runner_up: Tensor


class ClassMargins(NamedTuple):
    """First-order margins to K classes of every sample, in P threat norms.

    Attributes:
        margin: [P, B, K].
        norm: Dual norms of the gaps' gradients [P, B, K].
        nearest: The number of the class with the smallest margin, 0 to K - 1, int64 [P, B].

    Example:
        >>> from margin_ext.functional import class_margins
        >>> gap, grad = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        >>> found = class_margins(gap, grad, p=[2])
        >>> found.margin, found.nearest
        (tensor([[[2.0000, 0.6000]]]), tensor([[1]]))
    """

    margin: Tensor
    norm: Tensor
    nearest: Tensor


class SoftGap(NamedTuple):
    """Gap of every row under a label that is a distribution.

    Attributes:
        gap: [N].
        nearest: The classes of the largest and the second largest logit, int64 [N, 2].

    Example:
        >>> from margin_ext.functional import soft_gap
        >>> found = soft_gap(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]]))
        >>> found.gap, found.nearest
        (tensor([0.]), tensor([[0, 1]]))
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

    Example:
        >>> from margin_ext.functional import sample_gap
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 4.0]]])  # two classes at two positions
        >>> found = sample_gap(logits, torch.tensor([[0, 1]]))
        >>> found.gap, found.of_positions
        (tensor([3.]), tensor([[2., 4.]]))
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

    Example:
        >>> from margin_ext import first_order_margin
        >>> found = first_order_margin(torch.tensor([10.0]), torch.tensor([[3.0, 4.0]]))
        >>> found.margin, found.norm
        (tensor([2.]), tensor([5.]))
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

    Example:
        >>> from margin_ext import Regularizer, average_margin_loss
        >>> logits, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> phi = Regularizer.ramp(0, 3)
        >>> found = average_margin_loss(logits, torch.tensor([0]), grad, regularizer=phi)
        >>> found.margin, found.gap, found.norm
        (tensor([1.]), tensor([2.]), tensor([2.]))
    """

    loss: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics
