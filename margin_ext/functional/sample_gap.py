"""One gap and the loss of whole samples, where logits are dense or labels are soft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from margin_ext.functional.labels import sample_labels_of
from margin_ext.loss_settings import (
    Aggregation,
    LossKeywords,
    LossSettings,
    check_word,
    refuse_unknown,
    settings_from,
    shows_fields_of,
)
from margin_ext.op_results import MarginLoss, SampleGap

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["sample_gap", "sample_gap_cotangent", "sample_margin_loss"]


def sample_gap(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    aggregation: Aggregation = "mean",
    fixed: SampleGap | None = None,
    validate: bool = False,
    **renamed: object,
) -> SampleGap:
    """One gap a sample, for labels of any form.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: int64 [B, d1, ...], or probabilities of the shape of logits.
        weight: Class weights [C]; they weight the mean over the positions.
        ignore_index: Positions with this label do not count.
        aggregation: "mean" or "worst", the smallest gap (ties: the first position).
        fixed: A gap whose classes and positions are used; None: those of these logits.
        validate: Check the labels on CUDA too, and synchronise; on CPU they always are.
        **renamed: None; keywords of version 0.1 get an error that names the new one.

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or labels are out of range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 4.0]]])  # two classes at two positions
        >>> sample_gap(logits, torch.tensor([[0, 1]]), aggregation="worst").gap
        tensor([2.])
    """
    refuse_unknown(renamed)
    check_word("aggregation", aggregation, Aggregation)
    labels = sample_labels_of(target, weight, ignore_index, aggregation, validate)
    return labels.sample_gap(logits, fixed)


def sample_gap_cotangent(
    logits: Tensor, target: Tensor, found: SampleGap, scale: float | Tensor = 1.0
) -> Tensor:
    """Gradient of scale * the sum of the samples' gaps with respect to the logits.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: As for :func:`sample_gap`.
        found: The result of :func:`sample_gap` for these logits.
        scale: A number, or a tensor that broadcasts to the fractions [B, d1, ...].

    Returns:
        The shape and type of logits.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([0])
        >>> sample_gap_cotangent(logits, target, sample_gap(logits, target))
        tensor([[ 1.,  0., -1.]])
    """
    return sample_labels_of(target).cotangent(logits, found, scale)


@shows_fields_of(LossSettings)
def sample_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    fixed: SampleGap | None = None,
    validate: bool = False,
    **settings: Unpack[LossKeywords],
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t) at every position, where t is the margin of its sample.

    L_p = CE_p + mu * w_p * phi(t). Class labels have w_p = w_y, and the mean divides by their sum;
    probabilities have w_p = sum_c w_c q_c, and the mean divides by the number of positions, as
    cross_entropy does. Without grad, t is each position's own gap.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: int64 [B, d1, ...], or probabilities of the shape of logits.
        grad: Input gradient of each sample's gap [B, ...], or None.
        fixed: A gap whose classes and positions are used; None: those of these logits. It is the
            gap to which grad belongs.
        validate: On CPU labels are always checked. On CUDA a class label out of range ends in a
            device-side assertion; ``validate=True`` checks there too, and synchronises.
        **settings: The fields of :class:`margin_ext.loss_settings.LossSettings`; ``regularizer``
            has to be given.

    Returns:
        The loss is a scalar or [B, d1, ...]. Margin and gap are [B], or [B, d1, ...] without grad;
        their statistics are over the same elements. Accuracy, cross-entropy and regularizer are
        over positions.

    Raises:
        ValueError, TypeError: Shapes, types or settings do not fit, or labels are out of range.

    Example:
        >>> import torch
        >>> from margin_ext import Regularizer
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 4.0]]])  # two classes at two positions
        >>> grad, phi = torch.tensor([[3.0, 4.0]]), Regularizer.ramp(0, 3)
        >>> sample_margin_loss(logits, torch.tensor([[0, 1]]), grad, regularizer=phi).margin
        tensor([0.6000])
    """
    found = settings_from(settings)
    labels = sample_labels_of(target, found.weight, found.ignore_index, found.aggregation, validate)
    return labels.sample_loss(logits, grad, fixed, found)
