"""The regularized loss (arXiv 1907.11780, section 3), for labels of every form (docs/labels.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_class_weight, check_grad, check_same_device
from margin_ext.loss_settings import LossKeywords, LossSettings, settings_from, shows_fields_of
from margin_ext.op_results import MarginLoss, SampleGap
from margin_ext.reference.gap import logit_gap
from margin_ext.reference.labels import counted_positions, one_class_each, position_weight
from margin_ext.reference.margin import first_order_margin
from margin_ext.reference.sample_gap import sample_gap
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import BatchStatistics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["average_margin_loss", "regularize", "sample_margin_loss"]


def regularize(t: Tensor, regularizer: Regularizer) -> Tensor:
    """phi(t), element by element; t is a margin or a logit gap.

    Example:
        >>> regularize(torch.tensor([-1.0, 1.0, 4.0]), Regularizer.ramp(0, 3))
        tensor([3., 2., 0.])
    """
    return regularizer(t)


@shows_fields_of(LossSettings)
def average_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    nearest: Tensor | None = None,
    validate: bool = True,
    **settings: Unpack[LossKeywords],
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t), where t is the first-order margin (the gap without grad).

    L_i = CE_i + mu * w_y * phi(t_i). The mean divides by the sum of w_y over the samples that
    are not ignored, as cross_entropy does. An ignored sample has NaN for margin, gap and norm.
    Arguments, result and errors are those of :func:`margin_ext.average_margin_loss`, except that
    ``validate`` defaults to True.

    Example:
        >>> logits, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> phi = Regularizer.ramp(0, 3)
        >>> average_margin_loss(logits, torch.tensor([0]), grad, regularizer=phi).margin
        tensor([1.])
    """
    s = settings_from(settings)
    if not one_class_each(logits, target):
        if nearest is not None:
            raise ValueError("nearest goes with class labels [B] only")
        return sample_margin_loss(logits, target, grad, validate=validate, **settings)
    found = logit_gap(
        logits, target, nearest=nearest, ignore_index=s.ignore_index, validate=validate
    )
    if s.weight is not None:
        check_class_weight(s.weight, logits)
    dtype = accumulation_dtype(logits) if grad is None else accumulation_dtype(logits, grad)
    s.check_type(dtype, with_grad=grad is not None)
    valid = target != s.ignore_index
    if grad is None:
        margin = gap = found.gap.to(dtype)
        norm = gap.new_empty(0)
    else:
        margin, norm = _margin(logits, grad, found.gap, s)
        gap = found.gap.to(dtype)
    ones = torch.ones(logits.shape[1], dtype=dtype, device=logits.device)
    weight = ones if s.weight is None else s.weight.to(dtype)
    ce = _cross_entropy(logits, target, weight, dtype, s)
    w = torch.where(valid, weight[torch.where(valid, target, 0)], 0.0)
    phi = torch.where(valid, s.phi(torch.where(valid, margin, 0.0)), 0.0)
    total = w.sum()
    loss = _reduced(ce + s.mu * w * phi, total, s.reduction)
    with torch.no_grad():
        true_gap = gap
        if nearest is not None:
            true_gap = logit_gap(logits, target, ignore_index=s.ignore_index, validate=False).gap
        scale = torch.ones_like(total)
        if s.reduction == "mean":
            scale = torch.where(valid.any(), scale * valid.shape[0] / total, 0.0)
        statistics, norm = _statistics(
            valid,
            margin,
            gap,
            norm,
            [(true_gap > 0).sum() / valid.sum().to(dtype)],
            [ce.sum() / total, (w * phi).sum() / total],
            scale,
        )
    return MarginLoss(loss, margin.detach(), gap.detach(), norm.detach(), statistics)


@shows_fields_of(LossSettings)
def sample_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    fixed: SampleGap | None = None,
    validate: bool = True,
    **settings: Unpack[LossKeywords],
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t) at every position, where t is the margin of its sample.

    L_p = CE_p + mu * w_p * phi(t). Class labels have w_p = w_y, and the mean divides by their sum;
    probabilities have w_p = sum_c w_c q_c, and the mean divides by the number of positions, as
    cross_entropy does. Without grad, t is each position's own gap. Arguments, result and errors are
    those of :func:`margin_ext.functional.sample_margin_loss`, except that ``validate`` defaults to
    True.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 4.0]]])  # two classes at two positions
        >>> grad, phi = torch.tensor([[3.0, 4.0]]), Regularizer.ramp(0, 3)
        >>> sample_margin_loss(logits, torch.tensor([[0, 1]]), grad, regularizer=phi).margin
        tensor([0.6000])
    """
    s = settings_from(settings)
    found = sample_gap(logits, target, fixed=fixed, validate=validate, **s.label_keywords())
    gap = margin = found.of_positions
    norm = gap.new_empty(0)
    if grad is not None:
        gap = found.gap
        margin, norm = _margin(logits, grad, gap, s)
    dtype = torch.promote_types(accumulation_dtype(logits), margin.dtype)
    s.check_type(dtype, with_grad=grad is not None)
    counted = counted_positions(target, s.ignore_index)
    w = position_weight(target, s.weight, s.ignore_index, dtype)
    soft = target.is_floating_point()
    weight = None if s.weight is None else s.weight.to(dtype)
    ce = _cross_entropy(logits, target.to(dtype) if soft else target, weight, dtype, s)
    units = counted if margin.shape == counted.shape else counted.flatten(1).any(1)
    phi = torch.where(units, s.phi(torch.where(units, margin, 0.0)), 0.0)
    term = w * phi.reshape(phi.shape + (1,) * (w.dim() - phi.dim()))
    total = w.new_full((), w.numel()) if soft else w.sum()
    loss = _reduced(ce + s.mu * term, total, s.reduction)
    with torch.no_grad():
        if soft:
            correct = logits.argmax(1) == target.argmax(1)
        else:
            correct = counted & (found.of_positions > 0)
        statistics, norm = _statistics(
            units,
            margin,
            gap,
            norm,
            [correct.sum().to(dtype) / counted.sum()],
            [ce.sum() / total, term.sum() / total],
            torch.ones_like(total),
        )
    margin, gap = margin.detach().to(dtype), gap.detach().to(dtype)
    return MarginLoss(loss, margin, gap, norm.detach(), statistics)


def _margin(logits: Tensor, grad: Tensor, gap: Tensor, s: LossSettings) -> tuple[Tensor, Tensor]:
    check_same_device("logits", logits, grad=grad)
    check_grad(grad, logits.shape[0])
    return first_order_margin(gap, grad, p=s.p, eps=s.eps, input_std=s.input_std)


def _cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, dtype: torch.dtype, s: LossSettings
) -> Tensor:
    return nn.functional.cross_entropy(
        logits.to(dtype), target, weight, reduction="none", **s.cross_entropy_keywords()
    )


def _reduced(loss: Tensor, total: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.sum() / total
    return loss.sum() if reduction == "sum" else loss


def _statistics(
    units: Tensor,
    margin: Tensor,
    gap: Tensor,
    norm: Tensor,
    accuracy: list[Tensor],
    terms: list[Tensor],
    scale: Tensor,
) -> tuple[BatchStatistics, Tensor]:
    """The statistics of the units (samples or positions) that count; the norms, NaN elsewhere."""
    count = units.sum().to(terms[0].dtype)
    margins = torch.where(units, margin, math.inf)
    minimum = margins.min() if margins.numel() else margins.new_full((), math.nan)
    mean_norm = count * math.nan
    if norm.numel() or norm.shape == units.shape:
        mean_norm = torch.where(units, norm, 0.0).sum() / count
        norm = torch.where(units, norm, math.nan)
    means = [torch.where(units, each, 0.0).sum() / count for each in (margin, gap)]
    minimum = torch.where(count > 0, minimum, math.nan)
    values = [minimum, *means, mean_norm, *accuracy, *terms, count, scale]
    return BatchStatistics(torch.stack(values)), norm
