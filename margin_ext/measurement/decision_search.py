"""A search for near adversarial examples that sees decisions only, so that no gradient misleads it.

It walks along the boundary as HopSkipJump does (Chen, Jordan and Wainwright, arXiv 1904.02144): the
boundary's normal is estimated from the decisions at random points around a boundary point; a step
along the normal and a bisection toward the sample give the next boundary point.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from margin_ext.per_sample import per_sample
from margin_ext.threat import ThreatModel

__all__ = ["DECISION_QUERIES", "decision_search"]

_ROUNDS = 10
_DRAWS = 60
_HALVINGS = 12
# Attempts to step along the estimated normal, each half as long as the one before.
_STEPS = 6
# Distance of the random points, in units of the boundary point's.
_AROUND = 0.1
# Forward passes that one sample takes at most.
DECISION_QUERIES = _ROUNDS * (_DRAWS + _STEPS + _HALVINGS)


def decision_search(
    adversarial: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    *,
    threat: ThreatModel,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Distances [B] and adversarial points, at least as near as the adversarial points to start at.

    Args:
        adversarial: Takes points [B, ...] and tells which are misclassified [B].
        x: [B, ...], correctly classified.
        start: [B, ...], adversarial and in the data range.
        threat: The norm and the data range.
        seed: Seed of the random points.
    """
    generator = torch.Generator().manual_seed(seed)
    point, distance = start, threat.distance(start, x)
    for number in range(1, _ROUNDS + 1):
        normal = _normal(adversarial, x, point, threat, generator)
        length = distance / number**0.5
        trial, stepped = point, torch.zeros_like(distance, dtype=torch.bool)
        for _ in range(_STEPS):
            moved = threat.clamp(threat.step(normal, length, point))
            success = ~stepped & adversarial(moved)
            trial = torch.where(per_sample(success, x), moved, trial)
            stepped |= success
            length = torch.where(stepped, length, length / 2)
        found = _toward(adversarial, x, trial, threat)
        nearer = threat.distance(found, x) < distance
        point = torch.where(per_sample(nearer, x), found, point)
        distance = threat.distance(point, x)
    return distance, point


def _normal(
    adversarial: Callable[[Tensor], Tensor],
    x: Tensor,
    point: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
) -> Tensor:
    """Where the decisions turn adversarial around the points [B, ...], from random directions."""
    total, weighted, spread = x.new_zeros(x.shape[0]), torch.zeros_like(x), torch.zeros_like(x)
    radius = per_sample(_AROUND * torch.linalg.vector_norm((point - x).flatten(1), dim=1), x)
    for _ in range(_DRAWS):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        direction = direction / per_sample(
            torch.linalg.vector_norm(direction.flatten(1), dim=1), direction
        )
        decided = adversarial(threat.clamp(point + radius * direction)).to(x.dtype)
        total += decided
        weighted += per_sample(decided, x) * direction
        spread += direction
    # Decisions minus their mean: otherwise a majority drowns the direction.
    return weighted - per_sample(total / _DRAWS, x) * spread


def _toward(
    adversarial: Callable[[Tensor], Tensor], x: Tensor, point: Tensor, threat: ThreatModel
) -> Tensor:
    """The nearest adversarial point that a bisection finds on the line from x to the points."""
    low, high = x.new_zeros(x.shape[0]), x.new_ones(x.shape[0])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wrong = adversarial(threat.clamp(x + per_sample(middle, x) * (point - x)))
        high = torch.where(wrong, middle, high)
        low = torch.where(wrong, low, middle)
    found = threat.clamp(x + per_sample(high, x) * (point - x))
    # Rounding of the last point must not leave the adversarial side.
    return torch.where(per_sample(adversarial(found), x), found, point)
