"""The loss of margins that are known, composed of torch's own differentiable functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.loss_settings import LossSettings
from margin_ext.op_results import MarginLoss
from margin_ext.statistics import BatchStatistics

if TYPE_CHECKING:
    from margin_ext.functional.dense_labels import DenseLabels

__all__ = ["composed_loss"]


def composed_loss(
    labels: DenseLabels,
    logits: Tensor,
    margin: Tensor,
    gap: Tensor,
    norm: Tensor,
    correct: Tensor,
    settings: LossSettings,
    term: Tensor | None = None,
) -> MarginLoss:
    """L_p = CE_p + mu * w_p * phi(t) at every position, where t is the margin of its sample.

    With ``term`` it is CE_p + mu * term_p, and the margin is only reported.

    Args:
        labels: The labels of the logits.
        logits: [B, C] or [B, C, d1, ...].
        margin: What the regularizer sees, [B] or [B, d1, ...]; NaN where nothing counts.
        gap: The gaps, of the same shape.
        norm: [B], or empty.
        correct: Whether each position is classified correctly, bool [B, d1, ...].
        settings: The settings of the loss.
        term: What mu multiplies, [B, d1, ...], with its class weights; 0 where ignored.
    """
    dtype = torch.promote_types(accumulation_dtype(logits), margin.dtype)
    settings.check_type(dtype, with_grad=norm.numel() > 0)
    counted = labels.positions_counted()
    w = labels.weight(dtype)
    ce = labels.cross_entropy(logits, replace(settings, reduction="none"), dtype)
    units = counted if margin.shape == counted.shape else counted.flatten(1).any(1)
    if term is None:
        phi = torch.where(units, settings.phi(torch.where(units, margin, 0.0)), 0.0)
        term = w * phi.reshape(phi.shape + (1,) * (w.dim() - phi.dim()))
    loss = ce + settings.mu * term
    total = labels.total(w)
    if settings.reduction == "mean":
        # If nothing counts, the mean is NaN, but its gradient is 0 and not 0 / 0.
        some = counted.any()
        loss = torch.where(some, loss.sum() / torch.where(some, total, 1.0), math.nan)
    elif settings.reduction == "sum":
        loss = loss.sum()
    with torch.no_grad():
        count = units.sum().to(dtype)
        margins = torch.where(units, margin, math.inf)
        minimum = margins.min() if margins.numel() else margins.new_full((), math.nan)
        means = [torch.where(units, each, 0.0).sum() / count for each in (margin, gap)]
        mean_norm = count * math.nan
        if norm.numel():
            mean_norm = torch.where(units, norm, 0.0).sum() / count
            norm = torch.where(units, norm, math.nan)
        statistics = torch.stack(
            [
                torch.where(count > 0, minimum, math.nan),
                *means,
                mean_norm,
                correct.sum().to(dtype) / counted.sum(),
                ce.sum() / total,
                term.sum() / total,
                count,
                torch.ones_like(count),
            ]
        )
    return MarginLoss(
        loss,
        margin.detach().to(dtype),
        gap.detach().to(dtype),
        norm.detach(),
        BatchStatistics(statistics),
    )
