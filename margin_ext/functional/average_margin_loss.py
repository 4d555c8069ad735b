"""The regularized loss as one differentiable function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from margin_ext.functional.labels import labels_of
from margin_ext.loss_settings import LossKeywords, LossSettings, settings_from, shows_fields_of
from margin_ext.op_results import MarginLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["average_margin_loss"]


@shows_fields_of(LossSettings)
def average_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    nearest: Tensor | None = None,
    validate: bool = False,
    **settings: Unpack[LossKeywords],
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t), where t is the first-order margin (the gap without grad).

    L_i = CE_i + mu * w_y * phi(t_i). The mean divides by the sum of w_y over the samples that
    are not ignored, as cross_entropy does. An ignored sample has NaN for margin, gap and norm. One
    pass over the data computes the loss and both gradients.

    Args:
        logits: [B, C]; or dense, [B, C, d1, ...].
        target: int64 [B]; or int64 [B, d1, ...], or probabilities of the shape of logits.
        grad: Input gradient of each sample's gap [B, ...], or None.
        nearest: int64 [B], the classes to which the gaps (and grad) lead; None: the runners-up.
            For class labels [B] only.
        validate: On CPU labels are always checked. On CUDA a label out of range gives a NaN loss
            (of dense logits with grad, a device-side assertion); ``validate=True`` checks there
            too, and synchronises.
        **settings: The fields of :class:`margin_ext.loss_settings.LossSettings`; ``regularizer``
            has to be given.

    Raises:
        ValueError, TypeError: Shapes, types or settings do not fit, or a label is out of range.

    Example:
        >>> import torch
        >>> from margin_ext import Regularizer
        >>> logits, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> phi = Regularizer.ramp(0, 3)
        >>> average_margin_loss(logits, torch.tensor([0]), grad, regularizer=phi).margin
        tensor([1.])
    """
    found = settings_from(settings)
    labels = labels_of(
        logits, target, found.weight, found.ignore_index, found.aggregation, validate
    )
    if nearest is not None and not labels.single:
        raise ValueError("nearest goes with class labels [B] only")
    return labels.loss(logits, grad, nearest, found)
