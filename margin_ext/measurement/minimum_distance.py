"""How far the nearest adversarial example that an attack finds lies: an upper bound on the margin.

The radius around each sample shrinks while the point on it is adversarial and grows while it is
not, as in DDN (Rony et al., 2019) and FMN (Pintor et al., 2021); here for the logit gap, with the
first-order distance as the first radius and a bisection of the way to the best point at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margin_ext.functional import dual_direction, logit_gap
from margin_ext.measurement.batches import DataRange, data_bounds
from margin_ext.measurement.evaluation_mode import Model
from margin_ext.measurement.gradient_norm import gradient_norm
from margin_ext.measurement.logits import checked_logits
from margin_ext.measurement.pgd import attack_gradient, check_ball, project
from margin_ext.reference.dual import channel_scale

__all__ = ["DistanceAttack", "NearestAdversarial", "nearest_adversarial"]


@dataclass(frozen=True)
class DistanceAttack:
    """How the attack searches.

    Attributes:
        steps: Gradient steps.
        radius_change: By which share the radius first changes in a step; falls to a hundredth.
        step: Length of the first step relative to the radius; falls to a hundredth.
        bisections: Forward passes that shorten the best point found.
        box: Keep adversarial examples in the data range, where one is given.
    """

    steps: int = 200
    radius_change: float = 0.1
    step: float = 1.0
    bisections: int = 16
    box: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.bisections < 0:
            raise ValueError("steps must be at least 1 and bisections not negative")
        if not 0 < self.radius_change < 1 or not self.step > 0:
            raise ValueError("radius_change must lie in (0, 1) and step be positive")


@dataclass(frozen=True)
class NearestAdversarial:
    """What the attack found.

    Attributes:
        distance: l_p distance [B] of a point with a gap of at most 0 (pixel units with
            input_std): 0 where the sample itself is one, infinite where none was found.
        point: That point [B, ...]; the sample where none was found.
    """

    distance: Tensor
    point: Tensor


def nearest_adversarial(
    model: Model,
    inputs: Tensor,
    label: Tensor,
    *,
    p: float = 2,
    settings: DistanceAttack | None = None,
    data_range: DataRange | None = None,
    input_std: float | Sequence[float] | Tensor | None = None,
) -> NearestAdversarial:
    """Search for the nearest point that is not classified as ``label``; deterministic.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        label: [B].
        p: 2 or infinity.
        settings: Steps and so on.
        data_range: As in `pgd`; used where settings.box.
        input_std: Standard deviation(s) of the loader's normalisation.
    """
    settings = settings or DistanceAttack()
    check_ball(p, 0.0)
    bounds = data_bounds(data_range, inputs) if settings.box else None
    center = inputs.detach()
    scale = 1.0 if input_std is None else 1 / channel_scale(input_std, center)
    x = center
    best = torch.full_like(label, math.inf, dtype=torch.promote_types(x.dtype, torch.float32))
    best_point = center.clone()
    radius = torch.zeros_like(best)
    for step in range(settings.steps):
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * step / settings.steps)) / 2
        gap, grad = attack_gradient(model, x, label, "gap")
        distance = torch.linalg.vector_norm(((x - center) * scale).flatten(1), p, dim=1)
        adversarial = gap <= 0
        nearer = adversarial & (distance < best)
        best = torch.where(nearer, distance.to(best.dtype), best)
        best_point[nearer] = x[nearer]
        if bounds is not None:
            # Directions that lead out of the box from its faces are of no use.
            outward = ((x <= bounds[0]) & (grad < 0)) | ((x >= bounds[1]) & (grad > 0))
            grad = grad.masked_fill(outward, 0.0)
        norm = gradient_norm(grad, p=p, input_std=input_std)
        to_boundary = gap / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        change = settings.radius_change * decay
        # Until something is found the tangent tells how far to go, and at least a tenth farther,
        # since the box may hold the point back.
        onward = torch.maximum(distance + 1.02 * to_boundary.clamp_max(1e6), 1.1 * radius)
        radius = torch.where(
            adversarial,
            torch.minimum(radius, best) * (1 - change),
            torch.where(torch.isinf(best), onward.clamp_max(1e6), radius * (1 + change)),
        )
        length = settings.step * decay * radius
        moved = dual_direction(grad, length, p=p, base=x, input_std=input_std)
        x = project(moved, center, radius, p=p, bounds=bounds, input_std=input_std)
    return _shorten(model, center, label, best, best_point, settings.bisections)


def _shorten(
    model: Model, center: Tensor, label: Tensor, best: Tensor, point: Tensor, bisections: int
) -> NearestAdversarial:
    """Bisect the way from the sample to the point for the end of the adversarial part."""
    shape = (-1, *[1] * (center.dim() - 1))
    low, high = torch.zeros_like(best), torch.ones_like(best)
    way = point - center
    with torch.no_grad():
        for _ in range(bisections):
            middle = (low + high) / 2
            x = center + way * middle.reshape(shape).to(way.dtype)
            gap = logit_gap(checked_logits(model, x), label).gap
            high = torch.where(gap <= 0, middle, high)
            low = torch.where(gap <= 0, low, middle)
    share = torch.where(torch.isfinite(best) & (best > 0), high, torch.ones_like(high))
    return NearestAdversarial(best * share, center + way * share.reshape(shape).to(way.dtype))
