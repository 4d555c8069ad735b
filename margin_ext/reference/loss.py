"""The regularized loss (paper.md section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_class_weight, check_grad, check_loss_settings, check_same_device
from margin_ext.reference.gap import logit_gap
from margin_ext.reference.labels import one_class_each
from margin_ext.reference.margin import first_order_margin
from margin_ext.reference.margin_loss import REDUCTIONS, MarginLoss
from margin_ext.reference.regularize import regularize
from margin_ext.reference.sample_loss import sample_margin_loss
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import BatchStatistics

__all__ = ["average_margin_loss"]


def average_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    regularizer: Regularizer,
    mu: float = 1.0,
    p: float | str = 2,
    eps: float = 1e-6,
    critical: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    input_std: float | Sequence[float] | Tensor | None = None,
    positions: str = "mean",
    validate: bool = True,
) -> MarginLoss:
    """Cross-entropy plus mu * phi(t), t the first-order margin (or the gap where grad is None).

    L_i = CE_i + mu * w_y * phi(t_i). The mean divides by the sum of the w_y of the samples that
    are not ignored, as cross_entropy does. Ignored samples have margin, gap and norm NaN.

    Args:
        logits: [B, C]; or dense, [B, C, d1, ...].
        target: int64 [B]; or int64 [B, d1, ...], or probabilities of the shape of logits: see
            :func:`sample_margin_loss`.
        grad: Input gradient of each sample's gap [B, ...], or None.
        regularizer: phi.
        mu: Weight of the regularizer.
        p: Threat norm.
        eps: Floor of the gradient norm.
        critical: int64 [B], the classes that the gaps (and grad) belong to; None: the runner-up.
            For class labels [B] only.
        weight: Class weights [C].
        ignore_index: Label of samples that do not count.
        label_smoothing: As in cross_entropy, 0 to 1.
        reduction: "mean", "sum" or "none".
        input_std: Standard deviation(s) of the loader's normalisation.
        positions: What the gap of a sample of dense logits is of its positions' gaps: "mean" or
            "worst".
        validate: Check the labels (synchronises with a GPU).
    """
    if not one_class_each(logits, target):
        if critical is not None:
            raise ValueError("critical goes with class labels [B] only")
        return sample_margin_loss(
            logits,
            target,
            grad,
            regularizer=regularizer,
            mu=mu,
            p=p,
            eps=eps,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            input_std=input_std,
            positions=positions,
            validate=validate,
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    found = logit_gap(
        logits, target, critical=critical, ignore_index=ignore_index, validate=validate
    )
    check_loss_settings(mu, eps, label_smoothing)
    if weight is not None:
        check_class_weight(weight, logits)
    dtype = accumulation_dtype(logits) if grad is None else accumulation_dtype(logits, grad)
    valid = target != ignore_index
    if grad is None:
        margin = gap = found.gap.to(dtype)
        norm = gap.new_empty(0)
    else:
        check_same_device("logits", logits, grad=grad)
        check_grad(grad, logits.shape[0])
        margin, norm = first_order_margin(found.gap, grad, p=p, eps=eps, input_std=input_std)
        norm = torch.where(valid, norm, math.nan)
        gap = found.gap.to(dtype)

    z = logits.to(dtype)
    class_weight = z.new_ones(z.shape[1]) if weight is None else weight.to(dtype)
    ce = nn.functional.cross_entropy(
        z,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    w = torch.where(valid, class_weight[torch.where(valid, target, 0)], 0.0)
    phi = torch.where(valid, regularize(torch.where(valid, margin, 0.0), regularizer), 0.0)
    per_sample = ce + mu * w * phi
    total = w.sum()
    loss = per_sample
    if reduction == "mean":
        loss = per_sample.sum() / total
    elif reduction == "sum":
        loss = per_sample.sum()

    with torch.no_grad():
        true_gap = gap
        if critical is not None:
            true_gap = logit_gap(logits, target, ignore_index=ignore_index, validate=False).gap
        count = valid.sum().to(dtype)
        some = count > 0
        margins = torch.where(valid, margin, math.inf)
        minimum = margins.min() if margins.numel() else margins.new_tensor(math.nan)
        scale = count.new_tensor(float(target.shape[0])) / total if reduction == "mean" else None
        statistics = torch.stack(
            [
                torch.where(some, minimum, math.nan),
                torch.where(valid, margin, 0.0).sum() / count,
                torch.where(valid, gap, 0.0).sum() / count,
                torch.where(valid, norm, 0.0).sum() / count
                if grad is not None
                else count * math.nan,
                (true_gap > 0).sum() / count,
                ce.sum() / total,
                (w * phi).sum() / total,
                count,
                torch.ones_like(count) if scale is None else torch.where(total > 0, scale, 0.0),
            ]
        )
    return MarginLoss(
        loss, margin.detach(), gap.detach(), norm.detach(), BatchStatistics(statistics)
    )
