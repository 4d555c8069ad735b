"""Which targets the loss takes, with one logit as two classes, and what to do with others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.checks import shape_text

__all__ = ["checked_target", "target_tensor", "two_class_logits", "two_class_target"]

_WHOLE = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_SEVERAL = (
    "for several labels a sample pass logits.unsqueeze(1) in place of the logits, which takes each "
    "column as a label of its own (docs/labels.md)"
)


def target_tensor(target: Any) -> Tensor:
    """The target, or TypeError where it is no tensor."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"target must be a tensor, got {type(target).__module__}.{type(target).__name__}: pass "
            "torch.as_tensor(target)"
        )
    return target


def checked_target(logits: Tensor, target: Any) -> Tensor:
    """The target of logits [B, C, ...] as class indices or probabilities.

    Shapes that fit none of the kinds below are refused later, where shapes are checked.

    Raises:
        TypeError: It is no tensor, or not int64.
        ValueError: It looks like several labels a sample, or like numbers to regress on.
    """
    given = target_tensor(target)
    if logits.dim() < 2:
        return given
    positions = logits.shape[:1] + logits.shape[2:]
    if given.shape == logits.shape != positions and not given.is_floating_point():
        raise ValueError(
            f"target must be [B, ...] = {shape_text(logits.select(1, 0))} class indices (logits "
            f"are {shape_text(logits)}), got {given.dtype} of the shape of the logits: for one-hot "
            f"labels pass target.argmax(1), {_SEVERAL}"
        )
    if given.dtype in _WHOLE:
        raise TypeError(
            f"target must be int64 class indices, got {given.dtype}: pass target.long()"
        )
    given = two_class_target(logits, given)
    column = (*logits.shape[:1], 1, *logits.shape[2:])
    if given.is_floating_point() and given.shape in (positions, column):
        raise ValueError(
            f"target must be int64 class indices or probabilities {shape_text(logits)}, got "
            f"{given.dtype} {shape_text(given)}: class indices as target.long(); a regression "
            "target has no classes, and so no margin: train on it with a loss of its own"
        )
    return given


def two_class_logits(logits: Tensor) -> Tensor:
    """Logits [B, 2, ...] of the classes 0 and 1 for one logit, [B] or [B, 1, ...]; others as given.

    The cross-entropy of (0, z) is the binary cross-entropy of z, and the gap of label 1 is z.

    Example:
        >>> two_class_logits(torch.tensor([[3.0], [-1.0]]))
        tensor([[ 0.,  3.],
                [ 0., -1.]])
    """
    if logits.dim() == 1:
        logits = logits.unsqueeze(1)
    if logits.dim() < 2 or logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def two_class_target(logits: Tensor, target: Tensor) -> Tensor:
    """The target of logits [B, 2, ...] as classes or as probabilities of both classes.

    Args:
        logits: Logits of two classes.
        target: int64 or floating, [B, ...] or [B, 1, ...]; where floating, the probability of
            class 1, as BCEWithLogitsLoss takes it. Targets of other shapes are returned as given.

    Example:
        >>> two_class_target(torch.zeros(2, 2), torch.tensor([[1.0], [0.25]]))
        tensor([[0.0000, 1.0000],
                [0.7500, 0.2500]])
    """
    positions = logits.shape[:1] + logits.shape[2:]
    if logits.shape[1] == 2 and target.shape == (*logits.shape[:1], 1, *logits.shape[2:]):
        target = target.squeeze(1)
    if logits.shape[1] != 2 or target.shape != positions or not target.is_floating_point():
        return target
    return torch.stack([1 - target, target], dim=1)
