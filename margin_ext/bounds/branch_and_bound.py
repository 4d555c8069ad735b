"""Certified distances of small ReLU networks by branch and bound.

A branch holds some ReLUs on one side of 0; the linear bounds of a branch are tighter than those of
the whole ball, and together the branches cover the ball (Bunel et al., arXiv 1711.00455; with
multipliers for the conditions: Wang et al., arXiv 2103.06624). The ball grows until the time is
up, an adversarial example is as near, or nothing is left to split.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from margin_ext.bounds.convex_activations import Rectifier
from margin_ext.bounds.relaxation import Ball, Relaxation
from margin_ext.bounds.relaxed_network import Stage
from margin_ext.bounds.slope_ascent import Choice, ascend, usual_choice

__all__ = ["branch_and_bound", "require_splittable"]

# By how much the ball grows at a time.
_GROWTH = 1.2
# A certified distance this near to an adversarial example's is near enough.
_CLOSE = 0.999
# Gradient steps for a branch, and for one in which nothing is left to split.
_STEPS, _LAST_STEPS = 20, 300
# Branches that are split at a time.
_TOGETHER = 32


def require_splittable(stages: list[Stage]) -> None:
    """Raise TypeError where an activation has no kink at which to split."""
    for stage in stages:
        if stage.activation is not None and not isinstance(stage.activation, Rectifier):
            raise TypeError(
                "branch and bound is for ReLU and LeakyReLU, the model has "
                f"{type(stage.activation).__name__}: set split_seconds=0"
            )


@dataclass(order=True)
class _Branch:
    """One rival class under some conditions.

    Attributes:
        bound: Distance [S = 1] that is certified in it.
        number: Of the branch: earlier ones first where bounds are equal.
        rival: Row of the forms.
        choice: Conditions, lines and multipliers.
        final: Nothing is left to do.
    """

    bound: float
    number: int
    rival: int = field(compare=False)
    choice: Choice = field(compare=False)
    final: bool = field(compare=False, default=False)


def branch_and_bound(
    relaxation: Relaxation,
    rows: Tensor,
    slack: Tensor,
    *,
    certified: float,
    farthest: float,
    seconds: float,
) -> float:
    """A certified distance that is larger than one known already, if time allows.

    Args:
        relaxation: Of the sample.
        rows: The gaps to all rival classes, as forms on the logits [S, C].
        slack: What the gaps must exceed [S].
        certified: The distance known.
        farthest: Of an adversarial example: nothing larger can be certified.
        seconds: When to stop.
    """
    end = time.monotonic() + seconds
    while certified < _CLOSE * farthest and time.monotonic() < end:
        radius = min(certified * _GROWTH, farthest)
        tree = _Tree(relaxation, rows, slack, relaxation.ball(radius))
        tree.grow(end, goal=min(radius, _CLOSE * farthest))
        certified = max(certified, min(radius, tree.bound))
        if tree.bound < radius:
            break
    return certified


class _Tree:
    """Branches that together cover a ball, for every rival class."""

    def __init__(self, relaxation: Relaxation, rows: Tensor, slack: Tensor, ball: Ball) -> None:
        self.relaxation = relaxation
        self.rows = rows
        self.slack = slack
        self.ball = ball
        self._numbers = itertools.count()
        self._open: list[_Branch] = []
        rivals = torch.arange(len(rows), device=rows.device)
        self._add(rivals, usual_choice(relaxation, rows, ball), rows.new_zeros(len(rows)))

    @property
    def bound(self) -> float:
        """The distance that is certified in all branches."""
        return self._open[0].bound if self._open else torch.inf

    def grow(self, end: float, goal: float) -> None:
        """Split the branches with the smallest bounds until all reach the goal, or time is up."""
        while self._open and self.bound < goal and time.monotonic() < end:
            if self._open[0].final:
                return
            chosen, kept = [], []
            while self._open and len(chosen) < self._together() and self._open[0].bound < goal:
                branch = heapq.heappop(self._open)
                (kept if branch.final else chosen).append(branch)
            for branch in kept:
                heapq.heappush(self._open, branch)
            self._split(chosen)

    def _together(self) -> int:
        stages = self.relaxation.stages
        most = max(stage.rectified for stage in stages[1:-1]) if len(stages) > 2 else 1
        return max(1, min(_TOGETHER, self.relaxation.rows // (4 * most)))

    def _add(self, rivals: Tensor, choice: Choice, known: Tensor, steps: int = _STEPS) -> None:
        """Bound new branches, S of them, and keep those that do not reach beyond the ball."""
        choice, reach = ascend(
            self.relaxation, self.rows[rivals], self.ball, choice, self.slack[rivals], steps
        )
        bounds = torch.maximum(reach.nan_to_num(0.0), known).tolist()
        for row, (bound, rival) in enumerate(zip(bounds, rivals.tolist(), strict=True)):
            if bound < self.ball.radius:
                own = choice.of(torch.tensor([row], device=rivals.device))
                final = steps == _LAST_STEPS
                heapq.heappush(self._open, _Branch(bound, next(self._numbers), rival, own, final))

    def _split(self, branches: list[_Branch]) -> None:
        """Replace branches by two of each, or tighten those in which nothing can be split."""
        choice = Choice.joined([branch.choice for branch in branches])
        device = self.rows.device
        rivals = torch.tensor([branch.rival for branch in branches], device=device)
        known = self.rows.new_tensor([branch.bound for branch in branches])
        layer, unit = self._units_to_split(rivals, choice)
        whole = layer < 0
        if bool(whole.any()):
            self._add(rivals[whole], choice.of(whole), known[whole], steps=_LAST_STEPS)
        inner = ~whole
        if bool(inner.any()):
            halves = [
                self._half(choice.of(inner), layer[inner], unit[inner], sign) for sign in (1, -1)
            ]
            both = Choice.joined(halves)
            self._add(rivals[inner].repeat(2), both, known[inner].repeat(2))

    def _units_to_split(self, rivals: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Layer and unit [S] where the lines lose most; layer -1 where no unit is left."""
        forms = choice.forms(self.relaxation, self.rows[rivals], self.ball)
        best = self.rows.new_full((len(rivals),), -1.0)
        layer = torch.full_like(rivals, -1)
        unit = torch.zeros_like(rivals)
        for number, before in enumerate(reversed(forms.rows)):
            low, high = choice.low[number], choice.high[number]
            unsure = (low < 0) & (high > 0)
            rows = before[:, : low.shape[1]]
            area = torch.where(unsure, -low * high / (high - low).clamp_min(1e-290), 0.0)
            score = area * (rows.clamp_max(0).abs() + 0.5 * rows.clamp_min(0))
            score = torch.where(unsure, score, -1.0)
            top, at = score.max(dim=1)
            better = top > best
            best = torch.where(better, top, best)
            layer = torch.where(better, number, layer)
            unit = torch.where(better, at, unit)
        return layer, unit

    def _half(self, choice: Choice, layer: Tensor, unit: Tensor, sign: int) -> Choice:
        """The branches with one more unit held on one side of 0."""
        low, high = [end.clone() for end in choice.low], [end.clone() for end in choice.high]
        signs = [part.clone() for part in choice.signs]
        for number in range(len(low)):
            row = (layer == number).nonzero().squeeze(1)
            at = unit[row]
            signs[number][row, at] = sign
            if sign > 0:
                low[number][row, at] = low[number][row, at].clamp_min(0)
            else:
                high[number][row, at] = high[number][row, at].clamp_max(0)
        half = Choice(choice.positions, choice.multipliers, signs, choice.scales, low, high)
        self._tighten(half, first=int(layer.min()) + 1)
        return half

    def _tighten(self, choice: Choice, first: int) -> None:
        """Bounds of what goes into the activations of later stages, in the branch."""
        relaxation = self.relaxation
        for number in range(first, len(choice.low)):
            low, high = choice.low[number], choice.high[number]
            unsure = ((low < 0) & (high > 0)).any(dim=0).nonzero().squeeze(1)
            if not unsure.numel():
                continue
            lines = [
                relaxation.enclose(before, choice.low[before], choice.high[before])
                for before in range(number)
            ]
            found = relaxation.unit_bounds(number, unsure, self.ball, lines)
            # An empty branch may have bounds that cross.
            tighter = torch.minimum(torch.maximum(low[:, unsure], found[0]), high[:, unsure])
            choice.low[number][:, unsure] = tighter
            choice.high[number][:, unsure] = torch.maximum(
                torch.minimum(high[:, unsure], found[1]), tighter
            )
