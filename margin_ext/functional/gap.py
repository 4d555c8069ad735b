"""Logit gap with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext import reference
from margin_ext.checks import check_logits_and_labels, check_same_device
from margin_ext.functional.dispatch import by_rows, compiled_for, labels_readable
from margin_ext.reference import LogitGap
from margin_ext.reference.labels import one_class_each, per_position

__all__ = ["gap_seed", "logit_gap"]


def gap_seed(logits: Tensor, target: Tensor, critical: Tensor, upstream: Tensor) -> Tensor:
    """Gradient of sum_i upstream_i * gap_i by the logits: [B, C].

    It holds upstream at y and -upstream at the critical class.

    Ignored samples, whose critical class is -1, have a row of zeros.
    """
    valid = critical >= 0
    u = torch.where(valid, upstream, 0.0).to(logits.dtype).unsqueeze(1)
    label = torch.where(valid, target, 0).unsqueeze(1)
    other = critical.clamp_min(0).unsqueeze(1)
    return torch.zeros_like(logits).scatter(1, label, u).scatter_add(1, other, -u)


class _LogitGap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, critical: Tensor | None, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        gap, runner_up = torch.ops.margin_ext.logit_gap(logits, target, critical, ignore_index)
        ctx.save_for_backward(logits, target, runner_up)
        ctx.mark_non_differentiable(runner_up)
        return gap, runner_up

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, runner_up = ctx.saved_tensors
        return gap_seed(logits, target, runner_up, upstream), None, None, None


def logit_gap(
    logits: Tensor,
    target: Tensor,
    *,
    critical: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = False,
) -> LogitGap:
    """As :func:`margin_ext.reference.logit_gap`.

    On CPU labels are always checked. On CUDA a label out of range makes its sample NaN;
    ``validate=True`` checks there too, and synchronises.
    """
    if not one_class_each(logits, target):
        return _gap_of_positions(logits, target, critical, ignore_index, validate)
    if not compiled_for(logits):
        return reference.logit_gap(
            logits,
            target,
            critical=critical,
            ignore_index=ignore_index,
            validate=validate or labels_readable(logits),
        )
    check_same_device("logits", logits, target=target, critical=critical)
    if validate:
        reference.logit_gap(logits.detach(), target, critical=critical, ignore_index=ignore_index)
    found = _LogitGap.apply(  # type: ignore[no-untyped-call]
        logits, target, critical, ignore_index
    )
    return LogitGap(*found)


def _gap_of_positions(
    logits: Tensor, target: Tensor, critical: Tensor | None, ignore_index: int, validate: bool
) -> LogitGap:
    check_logits_and_labels(logits, target)
    if target.is_floating_point() or critical is not None or not compiled_for(logits):
        return reference.logit_gap(
            logits,
            target,
            critical=critical,
            ignore_index=ignore_index,
            validate=validate or labels_readable(logits),
        )
    gap, runner_up = by_rows(
        logit_gap, logits, target, ignore_index=ignore_index, validate=validate
    )
    return LogitGap(per_position(gap, logits), per_position(runner_up, logits))
