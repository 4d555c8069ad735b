"""The additive margin, and the log-odds from which it is computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_class_weight, check_grad, check_logits_and_labels, check_target
from margin_ext.loss_settings import FormulaKeywords, formula_settings
from margin_ext.op_results import MarginLoss
from margin_ext.reference.dual import dual_norm
from margin_ext.reference.gap import logit_gap
from margin_ext.statistics import BatchStatistics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["additive_margin_loss", "log_odds"]


def log_odds(
    logits: Tensor, target: Tensor, *, ignore_index: int = -100, validate: bool = True
) -> Tensor:
    """z_y - log sum_{k != y} exp(z_k) [B]; inf where the sum is empty, NaN where ignored.

    Arguments and errors are those of :func:`margin_ext.functional.log_odds`.

    Example:
        >>> log_odds(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor([2.])
    """
    check_logits_and_labels(logits, target)
    if logits.dim() != 2 or target.dim() != 1:
        raise ValueError("the log-odds take logits [B, C] and one class label a sample [B]")
    if validate:
        check_target(target, logits.shape[1], ignore_index)
    z = logits.to(accumulation_dtype(logits))
    valid = target != ignore_index
    own = nn.functional.one_hot(torch.where(valid, target, 0), z.shape[1]).bool()
    others = z.masked_fill(own, -math.inf)
    alone = (others == -math.inf).all(1, keepdim=True)
    rest = others.masked_fill(alone, 0.0).logsumexp(1)
    odds = torch.where(own, z, 0.0).sum(1) - rest
    return odds.masked_fill(alone.squeeze(1), math.inf).masked_fill(~valid, math.nan)


def additive_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor,
    *,
    tau: float,
    validate: bool = True,
    **settings: Unpack[FormulaKeywords],
) -> MarginLoss:
    """L = CE(z) + mu (CE(z - tau n e_y) - CE(z)), where n is the dual norm of grad.

    grad is the input gradient of the log-odds a. Arguments, result and errors are those of
    :func:`margin_ext.functional.additive_margin_loss`, except that ``validate`` defaults to True.

    Example:
        >>> logits, grad = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> lowered = additive_margin_loss(logits, torch.tensor([0]), grad, tau=1.0).loss
        >>> round(float(lowered), 4)  # log(1 + exp(2 - 2))
        0.6931
    """
    s = formula_settings(settings)
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    check_grad(grad, logits.shape[0])
    odds = log_odds(logits, target, ignore_index=s.ignore_index, validate=validate)
    if s.weight is not None:
        check_class_weight(s.weight, logits)
    dtype = accumulation_dtype(logits, grad)
    s.check_type(dtype, with_grad=True)
    valid = target != s.ignore_index
    norm = dual_norm(grad, p=s.p, input_std=s.input_std).to(dtype)
    z = logits.to(dtype)
    weight = None if s.weight is None else s.weight.to(dtype)
    own = nn.functional.one_hot(torch.where(valid, target, 0), z.shape[1]).bool()
    # No product with 0: the norm may be infinite.
    lowered = torch.where(own, z - (tau * torch.where(valid, norm, 0.0)).unsqueeze(1), z)
    ce, moved = (
        nn.functional.cross_entropy(
            each,
            target,
            weight,
            reduction="none",
            **s.cross_entropy_keywords(),
        )
        for each in (z, lowered)
    )
    w = valid.to(dtype)
    if weight is not None:
        w = torch.where(valid, weight[torch.where(valid, target, 0)], 0.0)
    total = w.sum()
    loss = ce + s.mu * (moved - ce)
    loss = {"mean": loss.sum() / total, "sum": loss.sum(), "none": loss}[s.reduction]
    with torch.no_grad():
        gap = odds.detach().to(dtype)
        # An infinite gap has an infinite margin, whatever the norm.
        margin = gap / torch.where(norm <= s.eps, s.eps, norm)
        count = valid.sum().to(dtype)
        told = torch.where(valid, margin, math.inf)
        smallest = told.min() if told.numel() else count * math.nan
        means = [torch.where(valid, each, 0.0).sum() / count for each in (margin, gap, norm)]
        hard = logit_gap(logits, target, ignore_index=s.ignore_index, validate=False).gap
        values = [
            torch.where(count > 0, smallest, math.nan),
            *means,
            (hard > 0).sum() / count,
            ce.sum() / total,
            (moved - ce).sum() / total,
            count,
            torch.ones_like(count),
        ]
        norm = torch.where(valid, norm, math.nan)
    return MarginLoss(loss, margin, gap, norm.detach(), BatchStatistics(torch.stack(values)))
