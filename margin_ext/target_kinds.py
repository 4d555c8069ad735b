"""Which targets the loss takes, and what to do with others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.checks import shape_text
from margin_ext.two_classes import two_class_target

__all__ = ["checked_target"]

_WHOLE = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_SEVERAL = (
    "for several labels a sample pass logits.unsqueeze(1) in place of the logits, which takes each "
    "column as a label of its own (docs/labels.md)"
)


def checked_target(logits: Tensor, target: Any) -> Tensor:
    """The target of logits [B, C, ...] as class indices or probabilities.

    Shapes that fit none of the kinds below are refused later, where shapes are checked.

    Raises:
        TypeError: It is no tensor, or not int64.
        ValueError: It looks like several labels a sample, or like numbers to regress on.
    """
    if not isinstance(target, Tensor):
        raise TypeError(
            f"target must be a tensor, got {type(target).__module__}.{type(target).__name__}: pass "
            "torch.as_tensor(target)"
        )
    given: Tensor = target
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
