"""The regularizers' formulas (paper.md section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext.regularizers import Regularizer

__all__ = ["regularize"]


def regularize(t: Tensor, regularizer: Regularizer) -> Tensor:
    """phi(t), element by element; t is a margin or a logit gap."""
    lo, hi = regularizer.lo, regularizer.hi
    if regularizer.kind == "ramp":
        return torch.clamp(hi - t, 0.0, hi - lo)
    if regularizer.kind == "hinge":
        return torch.clamp(hi - t, min=0.0)
    if regularizer.kind == "linear":
        return -t
    if regularizer.kind == "softplus":
        return hi * torch.logaddexp(torch.zeros_like(t), -t / hi)
    if regularizer.kind == "exponential":
        return torch.exp(-t / hi)
    raise ValueError(f"unknown regularizer {regularizer.kind!r}")
