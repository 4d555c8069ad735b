"""The logit gap of class labels, one a sample, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.checks import (
    check_labels,
    check_nearest,
    check_same_device,
    values_readable,
)
from margin_ext.functional.dispatch import compiled_for, fallback
from margin_ext.op_results import LogitGap

__all__ = ["class_gap", "gap_cotangent"]


def gap_cotangent(logits: Tensor, target: Tensor, nearest: Tensor, upstream: Tensor) -> Tensor:
    """Gradient of sum_i upstream_i * gap_i with respect to the logits [B, C].

    Each row holds upstream at y and -upstream at the nearest class. An ignored sample, whose
    nearest class is -1, has a row of zeros.

    Args:
        logits: [B, C].
        target: y, int64 [B].
        nearest: The classes to which the gaps are measured, int64 [B].
        upstream: [B].

    Returns:
        The shape and type of logits.

    Example:
        >>> gap_cotangent(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([2]), torch.ones(1))
        tensor([[ 1.,  0., -1.]])
    """
    valid = nearest >= 0
    u = torch.where(valid, upstream, 0.0).to(logits.dtype).unsqueeze(1)
    label = torch.where(valid, target, 0).unsqueeze(1)
    other = nearest.clamp_min(0).unsqueeze(1)
    return torch.zeros_like(logits).scatter(1, label, u).scatter_add(1, other, -u)


class _LogitGap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        gap, runner_up = torch.ops.margin_ext.logit_gap(logits, target, nearest, ignore_index)
        ctx.save_for_backward(logits, target, runner_up)
        ctx.mark_non_differentiable(runner_up)
        return gap, runner_up

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, runner_up = ctx.saved_tensors
        return gap_cotangent(logits, target, runner_up, upstream), None, None, None


def class_gap(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int, validate: bool
) -> LogitGap:
    """:func:`margin_ext.logit_gap` for logits [B, C] and target int64 [B]."""
    if not compiled_for(logits):
        validate = validate or values_readable(logits)
        return fallback.logit_gap(
            logits, target, nearest=nearest, ignore_index=ignore_index, validate=validate
        )
    check_same_device("logits", logits, target=target, nearest=nearest)
    if validate:
        check_class_labels(logits, target, nearest, ignore_index)
    try:
        found = _LogitGap.apply(logits, target, nearest, ignore_index)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        refuse_nearest(logits, target, nearest, ignore_index)
        raise
    return LogitGap(*found)


def check_class_labels(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
) -> None:
    """Require labels in range; synchronises with a GPU."""
    check_labels("target", target, logits.shape[1], ignore_index)
    refuse_nearest(logits, target, nearest, ignore_index)


def refuse_nearest(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
) -> None:
    """Say what is wrong with the nearest classes, where the op has refused its arguments."""
    if nearest is not None:
        check_nearest(nearest, target, logits.shape[1], ignore_index)
