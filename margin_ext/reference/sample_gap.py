"""The gap of a whole sample whose logits are dense, or whose label is soft (docs/labels.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_class_weight, check_logits_and_labels, check_target
from margin_ext.loss_settings import Aggregation, check_word
from margin_ext.op_results import SampleGap
from margin_ext.reference.gap import class_gap
from margin_ext.reference.labels import (
    as_rows,
    counted_positions,
    flat_positions,
    per_position,
    position_weight,
)
from margin_ext.reference.soft_gap import soft_gap

__all__ = ["sample_gap"]


def sample_gap(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    aggregation: Aggregation = "mean",
    fixed: SampleGap | None = None,
    validate: bool = True,
) -> SampleGap:
    """One gap a sample, for labels of any form.

    Args:
        logits: [B, C] or [B, C, d1, ...].
        target: int64 [B, d1, ...], or probabilities of the shape of logits.
        weight: Class weights [C]; they weight the mean over the positions.
        ignore_index: Positions with this label do not count.
        aggregation: "mean" or "worst", the smallest gap (ties: the first position).
        fixed: A gap whose classes and positions are used; None: those of these logits.
        validate: Check the labels (synchronises with a GPU).

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or labels are out of range.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 4.0]]])  # two classes at two positions
        >>> sample_gap(logits, torch.tensor([[0, 1]]), aggregation="worst").gap
        tensor([2.])
    """
    check_logits_and_labels(logits, target)
    if weight is not None:
        check_class_weight(weight, logits)
    if validate:
        check_target(target, logits.shape[1], ignore_index)
    z, y = as_rows(logits, target)
    nearest = None if fixed is None else fixed.nearest
    if target.is_floating_point():
        rows, nearest = soft_gap(z, y, nearest=nearest, validate=False)
    else:
        checked = validate and nearest is not None
        rows, nearest = class_gap(z, y, nearest, ignore_index, checked)
    gaps = per_position(rows, logits)
    if fixed is None:
        fraction = _join_positions(
            gaps.detach(),
            counted_positions(target, ignore_index),
            position_weight(target, weight, ignore_index, accumulation_dtype(logits)),
            aggregation,
        )
    else:
        fraction = fixed.fraction
    return SampleGap(
        _sum_of_positions(gaps, fraction, target, ignore_index), gaps, fraction, nearest
    )


def _join_positions(
    gaps: Tensor, counted: Tensor, weight: Tensor, aggregation: Aggregation
) -> Tensor:
    """The factor of each position's gap in the gap of its sample, [B, d1, ...].

    Args:
        gaps: [B, d1, ...].
        counted: bool, of the same shape.
        weight: Weights of the positions, 0 where they do not count. If all weights of a sample are
            0, its positions that count have equal weights.
        aggregation: "mean" or "worst".
    """
    check_word("aggregation", aggregation, Aggregation)
    flat, known = flat_positions(gaps), flat_positions(counted)
    if aggregation == "worst" and flat.shape[1] > 0:
        first = torch.where(known, flat, math.inf).argmin(dim=1, keepdim=True)
        # Infinite gaps (masked classes) tie with positions that do not count.
        first_known = known.to(torch.uint8).argmax(dim=1, keepdim=True)
        first = torch.where(known.gather(1, first), first, first_known)
        fraction = torch.zeros_like(flat).scatter(1, first, 1.0)
        return torch.where(known, fraction, 0.0).reshape(gaps.shape)
    w = flat_positions(weight).to(flat.dtype)
    w = torch.where(w.sum(1, keepdim=True) != 0, w, known.to(w.dtype))
    total = w.sum(1, keepdim=True)
    return (w / torch.where(total != 0, total, 1.0)).reshape(gaps.shape)


def _sum_of_positions(gaps: Tensor, fraction: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The samples' gaps [B]; NaN where no position counts."""
    parts = torch.where(fraction == 0, 0.0, fraction * torch.where(fraction == 0, 0.0, gaps))
    some = flat_positions(counted_positions(target, ignore_index)).any(1)
    return torch.where(some, flat_positions(parts).sum(1), math.nan)
