"""Projected gradient descent on the gap to each class in turn: a plain attack to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from margin_ext.threat import ThreatModel

__all__ = ["targeted_gaps"]

_STEPS = 60
_MOMENTUM = 0.75


def targeted_gaps(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: float
) -> Tensor:
    """Points [B, ...] within eps that are misclassified, or x where none was found.

    The first step is as long as the radius, the last one a hundredth of it (cosine), with momentum;
    samples that are broken leave.

    Args:
        model: In eval mode.
        x: Images [B, ...].
        y: Labels [B].
        threat: The norm and the data range.
        eps: The radius.
    """
    found = x.clone()
    left = torch.arange(len(y))
    with torch.no_grad():
        order = model(x).scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True)
    for rank in range(order.shape[1] - 1):
        left = _toward(model, x, y, order[:, rank], threat, eps, left, found)
    return found


def _toward(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    threat: ThreatModel,
    eps: float,
    left: Tensor,
    found: Tensor,
) -> Tensor:
    """Attack the rows that are left toward one class each; returns the rows that still are."""
    point = x[left]
    velocity = torch.zeros_like(point)
    for step in range(_STEPS + 1):
        if not len(left):
            break
        point.requires_grad_()
        logits = model(point)
        rows = torch.arange(len(left))
        gap = logits[rows, y[left]] - logits[rows, target[left]]
        (grad,) = torch.autograd.grad(-gap.sum(), point)
        point = point.detach()
        broken = logits.argmax(dim=1) != y[left]
        found[left[broken]] = point[broken]
        left, point, grad, velocity = (t[~broken] for t in (left, point, grad, velocity))
        if not len(left) or step == _STEPS:
            break
        norm = grad.flatten(1).norm(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
        velocity = _MOMENTUM * velocity + grad / norm.reshape(-1, *[1] * (grad.dim() - 1))
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * step / _STEPS)) / 2
        radius = point.new_full((len(left),), eps)
        point = threat.attack_step(
            point, velocity, decay * radius, center=x[left], radius=radius, sparse=True
        )
    return left
