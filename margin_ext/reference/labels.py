"""Labels of every form: classes or probabilities, one for each sample or for each position.

Logits are [B, C] or [B, C, d1, ...]; a target is int64 [B, d1, ...] or, for probabilities, floating
[B, C, d1, ...]. What is per position has the shape [B, d1, ...].
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "as_rows",
    "counted_positions",
    "flat_positions",
    "one_class_each",
    "per_position",
    "position_weight",
]


def one_class_each(logits: Tensor, target: Tensor) -> bool:
    """Whether samples have one class label each: logits [B, C] and target [B]."""
    return target.dim() == 1 and logits.dim() <= 2


def as_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One position a row: logits [N, C], and target [N] or [N, C]."""
    classes = logits.shape[1]
    if target.is_floating_point():
        labels = target.movedim(1, -1).reshape(-1, classes)
    else:
        labels = target.reshape(-1)
    return logits.movedim(1, -1).reshape(-1, classes), labels


def per_position(rows: Tensor, logits: Tensor) -> Tensor:
    """A number a row [N], as [B, d1, ...]."""
    return rows.reshape(logits.shape[:1] + logits.shape[2:])


def flat_positions(values: Tensor) -> Tensor:
    """[B] or [B, d1, ...] as [B, P]."""
    return values.unsqueeze(-1).flatten(1)


def counted_positions(target: Tensor, ignore_index: int) -> Tensor:
    """Whether a position counts, bool [B, d1, ...]; with probabilities, as in torch, all do."""
    if target.is_floating_point():
        return torch.ones_like(target.select(1, 0), dtype=torch.bool)
    return target != ignore_index


def position_weight(
    target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """The class weight of each label [B, d1, ...], expected over probabilities; 0 if ignored."""
    counted = counted_positions(target, ignore_index)
    if weight is None:
        return counted.to(dtype)
    weight = weight.to(dtype)
    if target.is_floating_point():
        return (target.to(dtype).movedim(1, -1) * weight).sum(-1)
    return torch.where(counted, weight[torch.where(counted, target, 0)], 0.0)
