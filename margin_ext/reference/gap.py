"""The logit gap (arXiv 1907.11780, section 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import (
    check_labels,
    check_logits,
    check_logits_and_labels,
    check_nearest,
    check_same_device,
    check_sample_vector,
    check_target,
    shape_text,
)
from margin_ext.op_results import LogitGap
from margin_ext.reference.labels import as_rows, one_class_each, per_position
from margin_ext.reference.soft_gap import argmax_excluding, soft_gap

__all__ = ["class_gap", "logit_gap"]


def logit_gap(
    logits: Tensor,
    target: Tensor,
    *,
    nearest: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = True,
) -> LogitGap:
    """Gap a = z_y - max_{k != y} z_k and the runner-up that attains the maximum.

    Ties: the lowest class. A NaN logit gives a NaN gap.

    For a target of probabilities the gap is that of :func:`soft_gap`, and the runner-up is the
    class with the largest logit among all but the target's most probable class.

    Args:
        logits: [B, C], C >= 2, or dense, [B, C, d1, ...].
        target: int64 [B] or [B, d1, ...], or probabilities of the shape of logits.
        nearest: int64 [B] or [B, d1, ...], classes to measure the gap to in place of the
            runner-up; not with probabilities.
        ignore_index: Samples (positions) with this label have the gap NaN and runner-up -1, and no
            gradient.
        validate: Check the labels' range (synchronises with a GPU).

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or a label is out of range.

    Example:
        >>> logit_gap(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).gap
        tensor([1.])
    """
    if one_class_each(logits, target):
        return class_gap(logits, target, nearest, ignore_index, validate)
    return _gap_of_positions(logits, target, nearest, ignore_index, validate)


def class_gap(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int, validate: bool
) -> LogitGap:
    """:func:`logit_gap` for logits [B, C] with one class label each."""
    check_logits(logits, target)
    classes = logits.shape[1]
    if validate:
        check_labels("target", target, classes, ignore_index)
    z = logits.to(accumulation_dtype(logits))
    valid = target != ignore_index
    label = torch.where(valid, target, 0).unsqueeze(1)
    if nearest is None:
        others = z.detach().scatter(1, label, -math.inf)
        index = argmax_excluding(others, label)
    else:
        check_same_device("logits", logits, nearest=nearest)
        check_sample_vector("nearest", nearest, logits.shape[0])
        if validate:
            check_nearest(nearest, target, classes, ignore_index)
        index = torch.where(valid, nearest, 1).unsqueeze(1)
    gap = (z.gather(1, label) - z.gather(1, index)).squeeze(1)
    gap = torch.where(valid, gap, math.nan)
    return LogitGap(gap, torch.where(valid, index.squeeze(1), -1))


def _gap_of_positions(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int, validate: bool
) -> LogitGap:
    check_logits_and_labels(logits, target)
    if validate:
        check_target(target, logits.shape[1], ignore_index)
    z, y = as_rows(logits, target)
    if target.is_floating_point():
        if nearest is not None:
            raise ValueError("nearest does not go with a target of probabilities")
        gap = soft_gap(z, y, validate=False).gap
        label = y.argmax(dim=1, keepdim=True)
        runner_up = argmax_excluding(z.detach().scatter(1, label, -math.inf), label).squeeze(1)
    else:
        if nearest is not None:
            if nearest.shape != target.shape:
                raise ValueError(
                    f"nearest must have the shape of target, {shape_text(target)}, "
                    f"got {shape_text(nearest)}"
                )
            nearest = nearest.reshape(-1)
        checked = validate and nearest is not None
        gap, runner_up = class_gap(z, y, nearest, ignore_index, checked)
    return LogitGap(per_position(gap, logits), per_position(runner_up, logits))
