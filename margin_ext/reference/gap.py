"""The logit gap (paper.md section 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from margin_ext.checks import check_labels, check_logits, check_sample_vector
from margin_ext.reference.dual import wide

__all__ = ["LogitGap", "logit_gap"]


class LogitGap(NamedTuple):
    """Logit gap of every sample.

    Attributes:
        gap: z_y - z_k [B]; positive iff the sample is classified correctly (k the runner-up).
        runner_up: The class k [B] that the gap is measured to; -1 for ignored samples.
    """

    gap: Tensor
    runner_up: Tensor


def logit_gap(
    logits: Tensor,
    target: Tensor,
    *,
    critical: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = True,
) -> LogitGap:
    """Gap a = z_y - max_{k != y} z_k and the runner-up that attains the maximum.

    Ties: the lowest class. A NaN logit gives a NaN gap.

    Args:
        logits: [B, C], C >= 2.
        target: int64 [B].
        critical: int64 [B], classes to measure the gap to in place of the runner-up.
        ignore_index: Samples with this label have the gap NaN and runner-up -1, and no gradient.
        validate: Check the labels' range (synchronises with a GPU).

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or a label is out of range.
    """
    check_logits(logits, target)
    classes = logits.shape[1]
    if validate:
        check_labels("target", target, classes, ignore_index)
    z = logits.to(wide(logits))
    valid = target != ignore_index
    label = torch.where(valid, target, 0).unsqueeze(1)
    if critical is None:
        others = z.detach().scatter(1, label, -math.inf)
        index = _argmax_excluding(others, label)
    else:
        check_sample_vector("critical", critical, logits.shape[0])
        index = torch.where(valid, critical, 1)
        if validate:
            check_labels("critical", index, classes, None)
            if bool((valid & (index == target)).any()):
                raise ValueError("critical must differ from target in every sample")
        index = index.unsqueeze(1)
    gap = (z.gather(1, label) - z.gather(1, index)).squeeze(1)
    gap = torch.where(valid, gap, math.nan)
    return LogitGap(gap, torch.where(valid, index.squeeze(1), -1))


def _argmax_excluding(others: Tensor, label: Tensor) -> Tensor:
    """Argmax over dim 1 of values whose label entry is -inf, never the label itself."""
    index = others.argmax(dim=1, keepdim=True)
    # All others may be -inf too: then the lowest class that is not the label.
    return torch.where(index == label, torch.where(label == 0, 1, 0), index)
