"""Gaps and the loss of whole samples, where logits are dense or labels are soft.

The gaps of class labels and the pass over the input gradients, [B, D], are the fused ops'; the rest
is small beside them, and torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from margin_ext import reference
from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import (
    check_class_weight,
    check_logits_and_labels,
    check_loss_settings,
    check_same_device,
)
from margin_ext.functional.dispatch import compiled_for, labels_readable
from margin_ext.functional.gap import logit_gap
from margin_ext.functional.margin import first_order_margin
from margin_ext.reference import MarginLoss, SampleGap
from margin_ext.reference.labels import (
    as_rows,
    per_position,
    position_weight,
)
from margin_ext.reference.sample_gap import join_positions, sum_of_positions
from margin_ext.reference.sample_loss import combined_loss
from margin_ext.reference.soft_gap import soft_gap_seed
from margin_ext.regularizers import Regularizer

__all__ = ["sample_gap", "sample_gap_seed", "sample_margin_loss"]


def sample_gap(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    positions: str = "mean",
    fixed: SampleGap | None = None,
    validate: bool = False,
) -> SampleGap:
    """As :func:`margin_ext.reference.sample_gap`; on CPU labels are always checked."""
    if target.is_floating_point() or not compiled_for(logits):
        return reference.sample_gap(
            logits,
            target,
            weight=weight,
            ignore_index=ignore_index,
            positions=positions,
            fixed=fixed,
            validate=fixed is None and (validate or labels_readable(logits)),
        )
    check_logits_and_labels(logits, target)
    if weight is not None:
        check_class_weight(weight, logits)
    if fixed is None:
        gaps, critical = logit_gap(logits, target, ignore_index=ignore_index, validate=validate)
        critical = critical.reshape(-1)
        share = join_positions(
            gaps.detach(),
            target != ignore_index,
            position_weight(target, weight, ignore_index, accumulation_dtype(logits)),
            positions,
        )
    else:
        share, critical = fixed.share, fixed.critical
        gaps = _gaps_to(logits, target, per_position(critical, logits))
    return SampleGap(sum_of_positions(gaps, share, target, ignore_index), gaps, share, critical)


def _gaps_to(logits: Tensor, target: Tensor, critical: Tensor) -> Tensor:
    """The gaps to classes that are known, without a copy of the logits; NaN where there is none."""
    known = critical >= 0
    label = torch.where(known, target, 0).unsqueeze(1)
    own, other = logits.gather(1, label), logits.gather(1, critical.clamp_min(0).unsqueeze(1))
    dtype = accumulation_dtype(logits)
    return torch.where(known, (own.to(dtype) - other.to(dtype)).squeeze(1), torch.nan)


def sample_gap_seed(
    logits: Tensor, target: Tensor, found: SampleGap, scale: float | Tensor = 1.0
) -> Tensor:
    """Gradient of scale * the sum of the samples' gaps by the logits, of their shape and type."""
    share = (found.share * scale).unsqueeze(1)
    if target.is_floating_point():
        _, q = as_rows(logits, target)
        rows = soft_gap_seed(q.to(share.dtype), found.critical)
        seed = rows.reshape((*found.share.shape, logits.shape[1])).movedim(-1, 1)
        return (seed * share).to(logits.dtype)
    critical = per_position(found.critical, logits).unsqueeze(1)
    known = critical >= 0
    u = torch.where(known, share, 0.0).to(logits.dtype)
    label = torch.where(known, target.unsqueeze(1), 0)
    seed = torch.zeros_like(logits.detach()).scatter_(1, label, u)
    return seed.scatter_add_(1, critical.clamp_min(0), -u)


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
    validate: bool = False,
) -> MarginLoss:
    """As :func:`margin_ext.reference.sample_margin_loss`; on CPU labels are always checked.

    On CUDA a class label out of range stops the program in torch's kernels; ``validate=True``
    checks there too, and synchronises.
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
