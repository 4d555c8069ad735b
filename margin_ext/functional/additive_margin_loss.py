"""The additive margin: the cross-entropy after the label's logit was lowered by tau ||g||_q."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from margin_ext.checks import check_class_weight, check_grad, check_same_device
from margin_ext.functional.fused_loss import fused_loss
from margin_ext.functional.labels import ClassLabels
from margin_ext.functional.log_odds import check_one_label
from margin_ext.loss_settings import FormulaKeywords, LossSettings, formula_settings
from margin_ext.op_results import MarginLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["additive_loss", "additive_margin_loss"]


def additive_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor,
    *,
    tau: float,
    validate: bool = False,
    **settings: Unpack[FormulaKeywords],
) -> MarginLoss:
    """Cross-entropy of logits z whose label logit is lowered by tau ||grad||_q.

    L_i = CE_i + mu (CE'_i - CE_i), where CE' is the cross-entropy of the lowered logits. With
    mu = 1 the loss is CE' alone, which equals softplus(tau ||grad||_q - a) for the log-odds a. If
    the log-odds are linear up to the distance tau, CE' is the largest cross-entropy within it.

    Args:
        logits: [B, C].
        target: int64 [B].
        grad: Input gradient of each sample's :func:`log_odds` [B, ...].
        tau: How far the samples may be moved, in the unit of the inputs.
        validate: As in :func:`average_margin_loss`.
        **settings: The fields of :class:`margin_ext.loss_settings.LossSettings` but for
            ``regularizer``. ``eps`` changes the margins that are reported, not the loss.

    Returns:
        ``margin`` is a / ||grad||_q and ``gap`` a.

    Raises:
        ValueError, TypeError: Shapes, types or settings do not fit, or a label is out of range.

    Example:
        >>> logits, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> lowered = additive_margin_loss(logits, torch.tensor([0]), grad, tau=1.0).loss
        >>> round(float(lowered), 4)  # log(1 + exp(2 - 2))
        0.6931
    """
    found = formula_settings(settings)
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    check_one_label(logits, target)
    labels = ClassLabels(target, found.weight, found.ignore_index, validate=validate)
    return additive_loss(labels, logits, grad, tau, found)


def additive_loss(
    labels: ClassLabels, logits: Tensor, grad: Tensor, tau: float, settings: LossSettings
) -> MarginLoss:
    """:func:`additive_margin_loss`, with labels and settings as objects."""
    check_same_device("logits", logits, grad=grad)
    check_grad(grad, logits.shape[0])
    if labels.class_weight is not None:
        check_class_weight(labels.class_weight, logits)
    return fused_loss(logits, labels.target, grad, None, settings, labels.validate, tau)
