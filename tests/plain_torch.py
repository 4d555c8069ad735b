"""The formulas as a user would write them in plain PyTorch: in the inputs' own types, with
``torch.linalg.vector_norm`` and autograd. Independent of margin_ext.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["dual_exponent", "gap", "loss", "margin", "phi"]


def dual_exponent(p: float) -> float:
    return {1: math.inf, 2: 2.0, math.inf: 1.0}.get(p) or p / (p - 1)


def gap(logits: Tensor, target: Tensor, critical: Tensor | None = None) -> Tensor:
    label = target.unsqueeze(1)
    own = logits.gather(1, label).squeeze(1)
    if critical is not None:
        return own - logits.gather(1, critical.unsqueeze(1)).squeeze(1)
    others = logits.masked_fill(nn.functional.one_hot(target, logits.shape[1]).bool(), -math.inf)
    return own - others.max(dim=1).values


def margin(gaps: Tensor, grad: Tensor, p: float, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(grad.flatten(1), dual_exponent(p), dim=1)
    return gaps / norm.clamp_min(eps), norm


def phi(t: Tensor, kind: str, lo: float, hi: float) -> Tensor:
    if kind == "ramp":
        return torch.relu(hi - t) - torch.relu(lo - t)
    if kind == "hinge":
        return torch.relu(hi - t)
    if kind == "linear":
        return -t
    if kind == "softplus":
        return nn.functional.softplus(-t / hi, threshold=math.inf) * hi
    return torch.exp(-t / hi)


def loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None,
    *,
    p: float = 2,
    kind: str = "ramp",
    lo: float = 0.0,
    hi: float = 1.0,
    mu: float = 1.0,
    eps: float = 1e-6,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    critical: Tensor | None = None,
) -> Tensor:
    """Mean over the batch, as torch.nn.CrossEntropyLoss takes it."""
    counted = target != ignore_index
    ce = nn.functional.cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    logits, target = logits[counted], target[counted]
    t = gap(logits, target, None if critical is None else critical[counted])
    if grad is not None:
        t = margin(t, grad[counted], p, eps=eps)[0]
    w = torch.ones_like(t) if weight is None else weight[target]
    return (ce.sum() + mu * (w * phi(t, kind, lo, hi)).sum()) / w.sum()
