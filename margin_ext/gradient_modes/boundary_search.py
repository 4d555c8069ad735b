"""A short search for the decision boundary: projections onto the plane of the gap's tangent.

At a point x_t the tangent of the gap a is 0 on a plane. The next point is the point of that plane
that is nearest to the input x. The signed distance of x to the plane is
s = (a(x_t) + g . (x - x_t)) / ||g||_q, where g is the gradient at x_t. On a linear classifier the
first plane is the boundary itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.threat import ThreatModel

__all__ = ["BoundaryPoint", "find_boundary", "plane_distance", "trained_point"]

# A sample is trained at the length _FACTOR * distance + _BEYOND * radius. That lies beyond its
# boundary, because the training step itself moves the boundary outward.
_FACTOR = 1.1
_BEYOND = 0.2


class BoundaryPoint(NamedTuple):
    """The end of a search.

    Attributes:
        point: [B, ...], in the data range.
        distance: Signed distance of the last plane [B], at most the radius; above 0 where the
            sample lies on its class's side of it. 0 where the gap had no gradient.
        grad: The gradient of that plane [B, ...].
        norm: Its dual norm [B].
    """

    point: Tensor
    distance: Tensor
    grad: Tensor
    norm: Tensor


def find_boundary(
    gaps: Callable[[Tensor], tuple[Tensor, Tensor]],
    center: Tensor,
    start: Tensor,
    radius: Tensor,
    *,
    steps: int,
    threat: ThreatModel,
) -> BoundaryPoint:
    """Project each sample ``steps`` times.

    Args:
        gaps: Gives the gap [B] and its gradient [B, ...] at points [B, ...].
        center: The samples [B, ...], without a graph.
        start: The first points.
        radius: The largest length of the search [B].
        steps: The number of projections, at least 1.
        threat: The norm and the data range.
    """
    point = start
    for _ in range(steps):
        gap, grad = gaps(point)
        norm = threat.dual_norm(grad)
        distance = plane_distance(gap.detach(), grad, norm, center, point.detach())
        distance = torch.minimum(torch.maximum(distance, -radius), radius)
        point = threat.attack_step(center, grad, -distance)
    return BoundaryPoint(point, distance, grad, norm)


def plane_distance(
    gap: Tensor, grad: Tensor, norm: Tensor, center: Tensor, point: Tensor
) -> Tensor:
    """Signed distance [B] of each sample to the plane where the gap's tangent at a point is 0.

    Args:
        gap: At the point [B].
        grad: There [B, ...].
        norm: Dual norm of grad [B].
        center: The samples [B, ...].
        point: [B, ...].
    """
    dtype = accumulation_dtype(center, norm)
    rise = ((center.to(dtype) - point.to(dtype)) * grad.to(dtype)).flatten(1).sum(1)
    at_sample = gap.to(dtype) + rise
    # Ignored samples and masked classes have no finite gap.
    known = (norm > 0) & at_sample.isfinite()
    return torch.where(known, at_sample, 0.0) / torch.where(known, norm, 1.0).to(dtype)


def trained_point(
    found: BoundaryPoint,
    center: Tensor,
    radius: Tensor,
    threat: ThreatModel,
    attacked: Tensor | None = None,
) -> Tensor:
    """Where each sample is trained [B, ...]: a little beyond its boundary, at most at the radius.

    Samples on the wrong side of their boundary move toward their class.

    Args:
        found: The end of the search.
        center: The samples [B, ...].
        radius: [B].
        threat: The norm and the data range.
        attacked: Samples that move by the whole radius away from their class, bool [B].
    """
    length = torch.minimum(_FACTOR * found.distance.abs() + _BEYOND * radius, radius)
    length = torch.where(found.distance < 0, -length, length)
    if attacked is not None:
        length = torch.where(attacked, radius, length)
    return threat.attack_step(center, found.grad, -length)
