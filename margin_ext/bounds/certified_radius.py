"""The largest radius of a ball that linear bounds certify around one sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from margin_ext.bounds.relaxation import Ball, Relaxation
from margin_ext.bounds.slope_ascent import Choice, ascend, usual_choice

__all__ = ["Gaps", "certified_radius", "largest_certified"]

# Slopes are chosen in a ball that is a little larger than what is certified without.
_BEYOND = 1.05
_TRIALS = 60


class Gaps:
    """The gaps between a label's logit and the others, as linear forms on the logits.

    Attributes:
        rows: e_label - e_k [C - 1, C].
        at_center: The gaps at the sample [C - 1].
        slack: What bounds on them must exceed [C - 1].
    """

    def __init__(self, relaxation: Relaxation, label: int, slack: float) -> None:
        logits = relaxation.logits(relaxation.x)
        others = [k for k in range(logits.shape[1]) if k != label]
        self.rows = -torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)[others]
        self.rows[:, label] += 1
        self.at_center = self.rows @ logits[0]
        self.slack = logits.new_full((len(others),), slack)


def certified_radius(relaxation: Relaxation, gaps: Gaps, *, tolerance: float, slopes: int) -> float:
    """A radius within which all gaps are positive.

    Args:
        relaxation: The relaxation of the sample.
        gaps: What must stay positive.
        tolerance: The radius is the largest that is certified, up to this fraction.
        slopes: Gradient steps that choose lines below the activations.
    """

    def reach(ball: Ball, choice: Choice | None = None) -> float:
        positions = None if choice is None else choice.positions.split(relaxation.counts, dim=1)
        lines = relaxation.lines(ball, positions)
        return float(relaxation.forms(gaps.rows, ball, lines).reach(gaps.slack).min())

    if not reach(relaxation.ball(0.0)) > 0:
        return 0.0
    # At a vanishing radius the bounds are tangents: their distance sets the scale, where the sample
    # lies on no flat piece.
    tangent = float((gaps.at_center / _gradient_norms(relaxation, gaps.rows)).min())
    first = tangent if 0 < tangent < math.inf else 1.0
    radius = largest_certified(lambda eps: reach(relaxation.ball(eps)), first, tolerance)
    if slopes and radius > 0 and relaxation.counts:
        start = _BEYOND * radius
        ball = relaxation.ball(start)
        usual = usual_choice(relaxation, gaps.rows, ball)
        choice, _ = ascend(relaxation, gaps.rows, ball, usual, gaps.slack, slopes)
        tuned = largest_certified(lambda eps: reach(relaxation.ball(eps), choice), start, tolerance)
        radius = max(radius, tuned)
    return radius


def largest_certified(reach: Callable[[float], float], first: float, tolerance: float) -> float:
    """The largest radius that trials certify.

    Args:
        reach: A distance that is certified up to the radius given: of bounds that hold in the ball
            of this radius.
        first: The first radius to try.
        tolerance: Ends when the radius is known up to this fraction.

    Example:
        >>> found = largest_certified(lambda radius: 3 - radius, 1.0, 1e-6)
        >>> abs(found - 1.5) < 1e-5
        True
    """
    low, high = 0.0, math.inf
    # The last trial that certified its whole ball, and the last that did not: radius, and excess.
    inside: tuple[float, float] | None = None
    beyond: tuple[float, float] | None = None
    radius = first
    for _ in range(_TRIALS):
        found = reach(radius)
        if math.isnan(found):
            found = 0.0
        low = max(low, min(radius, found))
        high = min(high, max(radius, found))
        if found >= radius:
            inside = (radius, found - radius)
        else:
            beyond = (radius, found - radius)
        if high <= low * (1 + tolerance):
            break
        if beyond is None:
            radius = min(high, 2 * radius)
        elif inside is None:
            radius = (low + radius) / 2 if low else radius / 4
        else:
            # Where a line through both meets an excess of 0, but not at the ends.
            part = inside[1] / (inside[1] - beyond[1]) if math.isfinite(inside[1]) else 0.5
            radius = inside[0] + part * (beyond[0] - inside[0])
            edge = 0.02 * (high - low)
            radius = min(max(radius, low + edge), high - edge)
    return low


def _gradient_norms(relaxation: Relaxation, rows: Tensor) -> Tensor:
    """Dual norms [S] of the gradients of rows [S, C] times the logits at the sample."""
    x = relaxation.x
    points = x.repeat(rows.shape[0], *[1] * (x.dim() - 1)).requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad((relaxation.logits(points) * rows).sum(), points)
    return relaxation.threat.dual_norm(grad)
