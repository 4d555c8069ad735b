"""The regularized loss where logits are dense or labels are soft (docs/labels.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_grad, check_loss_settings, check_same_device
from margin_ext.reference.labels import counted_positions, position_weight
from margin_ext.reference.margin import first_order_margin
from margin_ext.reference.margin_loss import REDUCTIONS, MarginLoss
from margin_ext.reference.regularize import regularize
from margin_ext.reference.sample_gap import SampleGap, sample_gap
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import BatchStatistics

__all__ = ["combined_loss", "sample_margin_loss", "total_weight"]


def sample_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    regularizer: Regularizer,
    mu: float = 1.0,
    p: float | str = 2,
    eps: float = 1e-6,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    input_std: float | Sequence[float] | Tensor | None = None,
    positions: str = "mean",
    fixed: SampleGap | None = None,
    validate: bool = True,
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t) at every position, t the margin of its sample.

    L_p = CE_p + mu * w_p * phi(t). Class labels have w_p = w_y, and the mean divides by their sum;
    probabilities have w_p = sum_c w_c q_c, and the mean divides by the number of positions, as
    cross_entropy does. Without grad t is each position's own gap.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: int64 [B, d1, ...], or probabilities of the shape of logits.
        grad: Input gradient of each sample's gap [B, ...], or None.
        regularizer: phi.
        mu: Weight of the regularizer.
        p: Threat norm.
        eps: Floor of the gradient norm.
        weight: Class weights [C].
        ignore_index: Label of positions that do not count.
        label_smoothing: As in cross_entropy, 0 to 1.
        reduction: "mean", "sum" or "none".
        input_std: Standard deviation(s) of the loader's normalisation.
        positions: What a sample's gap is of its positions' gaps, "mean" or "worst".
        fixed: What the gaps (and grad) belong to; None: what they do for these logits.
        validate: Check the labels (synchronises with a GPU).

    Returns:
        The loss, a scalar or [B, d1, ...]; margin and gap are [B], without grad [B, d1, ...]. Over
        the same are the statistics, but accuracy, cross-entropy and regularizer are over positions.
    """
    found = sample_gap(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        positions=positions,
        fixed=fixed,
        validate=validate,
    )
    gap = margin = found.of_positions
    norm = gap.new_empty(0)
    if grad is not None:
        check_same_device("logits", logits, grad=grad)
        check_grad(grad, logits.shape[0])
        gap = found.gap
        margin, norm = first_order_margin(gap, grad, p=p, eps=eps, input_std=input_std)
    check_loss_settings(mu, eps, label_smoothing)
    return combined_loss(
        logits,
        target,
        found,
        margin,
        gap,
        norm,
        regularizer=regularizer,
        mu=mu,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def total_weight(weight: Tensor, target: Tensor) -> Tensor:
    """What the mean divides by: the weights' sum, with probabilities the number of positions."""
    if target.is_floating_point():
        return weight.new_full((), weight.numel())
    return weight.sum()


def combined_loss(
    logits: Tensor,
    target: Tensor,
    found: SampleGap,
    margin: Tensor,
    gap: Tensor,
    norm: Tensor,
    *,
    regularizer: Regularizer,
    mu: float,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> MarginLoss:
    """The loss of margins that are known.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: int64 [B, d1, ...], or probabilities of the shape of logits.
        found: The gaps of the logits.
        margin: What the regularizer sees, [B] or [B, d1, ...]; NaN where nothing counts.
        gap: Of the same shape.
        norm: [B], or empty.
        regularizer: phi.
        mu: Weight of the regularizer.
        weight: Class weights [C].
        ignore_index: Label of positions that do not count.
        label_smoothing: As in cross_entropy.
        reduction: "mean", "sum" or "none".
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    dtype = torch.promote_types(accumulation_dtype(logits), margin.dtype)
    counted = counted_positions(target, ignore_index)
    w = position_weight(target, weight, ignore_index, dtype)
    ce = nn.functional.cross_entropy(
        logits.to(dtype),
        target.to(dtype) if target.is_floating_point() else target,
        None if weight is None else weight.to(dtype),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    units = counted if margin.shape == counted.shape else counted.flatten(1).any(1)
    phi = torch.where(units, regularize(torch.where(units, margin, 0.0), regularizer), 0.0)
    phi = phi.reshape(phi.shape + (1,) * (w.dim() - phi.dim()))
    term = w * phi
    per_position = ce + mu * term
    total = total_weight(w, target)
    loss = per_position
    if reduction == "mean":
        loss = per_position.sum() / total
    elif reduction == "sum":
        loss = per_position.sum()
    with torch.no_grad():
        if target.is_floating_point():
            correct = logits.argmax(1) == target.argmax(1)
        else:
            correct = counted & (found.of_positions > 0)
        count = units.sum().to(dtype)
        margins = torch.where(units, margin, math.inf)
        minimum = margins.min() if margins.numel() else margins.new_full((), math.nan)
        mean_norm = (
            torch.where(units, norm, 0.0).sum() / count if norm.numel() else count * math.nan
        )
        statistics = torch.stack(
            [
                torch.where(count > 0, minimum, math.nan),
                torch.where(units, margin, 0.0).sum() / count,
                torch.where(units, gap, 0.0).sum() / count,
                mean_norm,
                correct.sum().to(dtype) / counted.sum(),
                ce.sum() / total,
                term.sum() / total,
                count,
                torch.ones_like(count),
            ]
        )
        norm = torch.where(units, norm, math.nan) if norm.numel() else norm
    return MarginLoss(
        loss,
        margin.detach().to(dtype),
        gap.detach().to(dtype),
        norm.detach(),
        BatchStatistics(statistics),
    )
