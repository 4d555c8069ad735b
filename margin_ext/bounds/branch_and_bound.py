"""Certified distances of small ReLU networks by branch and bound.

A branch holds some ReLUs on one side of 0; the linear bounds of a branch are tighter than those of
the whole ball, and together the branches cover the ball (Bunel et al., arXiv 1711.00455; with
multipliers for the conditions: Wang et al., arXiv 2103.06624). The ball grows until the time is
up, an adversarial example is as near, or nothing is left to split.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from margin_ext.bounds.certified_radius import Gaps
from margin_ext.bounds.convex_activations import Rectifier
from margin_ext.bounds.relaxation import Ball, Relaxation
from margin_ext.bounds.relaxed_network import Stage
from margin_ext.bounds.slope_ascent import Choice, ascend, usual_choice

__all__ = ["BRANCHES_TOGETHER", "Limit", "branch_and_bound", "require_splittable"]

# The ball grows by a factor: the first one, the largest one, and how the factor itself grows.
_GROWTH, _LARGEST_GROWTH, _FASTER = 1.1, 1.5, 1.1
# The search ends at this fraction of an adversarial example's distance.
_CLOSE = 0.999
# Gradient steps for a branch, and for one in which nothing is left to split.
_STEPS, _LAST_STEPS = 20, 300
# A relative gain for which the same number of steps is tried once more.
_GAIN = 1e-3
# Branches that are split at a time.
BRANCHES_TOGETHER = 128
# Forms of branches that need bounds of later stages' units, at most.
_ROWS = 4096


def require_splittable(stages: list[Stage]) -> None:
    """Raise TypeError where an activation has no kink at which to split."""
    for stage in stages:
        if stage.activation is not None and not isinstance(stage.activation, Rectifier):
            raise TypeError(
                "branch and bound is for ReLU and LeakyReLU, the model has "
                f"{type(stage.activation).__name__}: set branches=0"
            )


@dataclass(order=True)
class _Branch:
    """One rival class under some conditions.

    Attributes:
        bound: Distance that is certified in it.
        number: Puts earlier branches first where bounds are equal.
        rival: Row of the rival class in the gaps.
        choice: Conditions, lines and multipliers.
        final: Nothing is left to do.
    """

    bound: float
    number: int
    rival: int = field(compare=False)
    choice: Choice = field(compare=False)
    final: bool = field(compare=False, default=False)


class Limit:
    """How long to search for one sample.

    Attributes:
        branches: About how many more branches are bounded.
    """

    def __init__(self, branches: int, seconds: float) -> None:
        self.branches = branches
        self._end = time.monotonic() + seconds

    @property
    def reached(self) -> bool:
        """Whether it is time to stop."""
        return self.branches <= 0 or time.monotonic() >= self._end


def branch_and_bound(
    relaxation: Relaxation, gaps: Gaps, certified: float, farthest: float, limit: Limit
) -> float:
    """A certified distance, at least as large as the one that is known already.

    Args:
        relaxation: The relaxation of the sample.
        gaps: The gaps to all rival classes.
        certified: The distance known.
        farthest: Distance of an adversarial example: nothing larger can be certified.
        limit: How long to search.
    """
    growth = _GROWTH
    while 0 < certified < _CLOSE * farthest and not limit.reached:
        radius = min(certified * growth, farthest)
        growth = min(growth * _FASTER, _LARGEST_GROWTH)
        tree = _Tree(relaxation, gaps, relaxation.ball(radius), limit)
        tree.grow(goal=min(radius, _CLOSE * farthest))
        certified = max(certified, min(radius, tree.bound))
        if tree.bound < radius:
            break
    return certified


class _Tree:
    """Branches that together cover a ball, for every rival class."""

    def __init__(self, relaxation: Relaxation, gaps: Gaps, ball: Ball, limit: Limit) -> None:
        self.relaxation = relaxation
        rows = self.rows = gaps.rows
        self.slack = gaps.slack
        self.ball = ball
        self.limit = limit
        self._numbers = itertools.count()
        self._open: list[_Branch] = []
        rivals = torch.arange(len(rows), device=rows.device)
        self._add(rivals, usual_choice(relaxation, rows, ball), rows.new_zeros(len(rows)))

    @property
    def bound(self) -> float:
        """The distance that is certified in all branches."""
        return self._open[0].bound if self._open else torch.inf

    def grow(self, goal: float) -> None:
        """Split the branches with the smallest bounds until all reach the goal, or the limit."""
        while self._open and self.bound < goal and not self.limit.reached:
            if self._open[0].final:
                return
            chosen: list[_Branch] = []
            kept: list[_Branch] = []
            while self._open and len(chosen) < self._together() and self._open[0].bound < goal:
                branch = heapq.heappop(self._open)
                (kept if branch.final else chosen).append(branch)
            for branch in kept:
                heapq.heappush(self._open, branch)
            self._split(chosen)

    def _together(self) -> int:
        """Branches that are bounded at a time: their units' bounds need many rows."""
        most = max(self.relaxation.counts[1:], default=1)
        return max(2, min(BRANCHES_TOGETHER, _ROWS // (2 * most)))

    def _add(self, rivals: Tensor, choice: Choice, known: Tensor, steps: int = _STEPS) -> None:
        """Bound new branches, S of them, and keep those that do not reach beyond the ball."""
        self.limit.branches -= len(rivals)
        choice, reach = ascend(
            self.relaxation, self.rows[rivals], self.ball, choice, self.slack[rivals], steps
        )
        bounds = torch.maximum(reach.nan_to_num(0.0, torch.inf), known).tolist()
        for row, (bound, rival) in enumerate(zip(bounds, rivals.tolist(), strict=True)):
            if bound < self.ball.radius:
                own = choice.of(torch.tensor([row], device=rivals.device))
                # More steps may still gain where these did.
                final = steps == _LAST_STEPS and bound <= (1 + _GAIN) * float(known[row])
                heapq.heappush(self._open, _Branch(bound, next(self._numbers), rival, own, final))

    def _split(self, branches: list[_Branch]) -> None:
        """Replace branches by their parts, or tighten those in which nothing can be split."""
        choice = Choice.joined([branch.choice for branch in branches])
        device = self.rows.device
        rivals = torch.tensor([branch.rival for branch in branches], device=device)
        known = self.rows.new_tensor([branch.bound for branch in branches])
        score = self._scores(rivals, choice)
        left = (score > 0).sum(dim=1)
        whole, inner = left == 0, left > 0
        if bool(whole.any()):
            self._add(rivals[whole], choice.of(whole), known[whole], steps=_LAST_STEPS)
        if not bool(inner.any()):
            return
        # Few branches are split in several units at once.
        several = math.log2(self._together() / int(inner.sum()))
        count = max(1, min(int(several), int(left[inner].min())))
        units = score[inner].topk(count, dim=1).indices
        parts = [
            self._part(choice.of(inner), units, torch.tensor(signs, device=device))
            for signs in itertools.product((1.0, -1.0), repeat=count)
        ]
        both = self._tightened(Choice.joined(parts), int(units.min()))
        self._add(rivals[inner].repeat(len(parts)), both, known[inner].repeat(len(parts)))

    def _scores(self, rivals: Tensor, choice: Choice) -> Tensor:
        """How much the lines around every unit lose [S, U]; 0 where nothing can be split."""
        forms = choice.forms(self.relaxation, self.rows[rivals], self.ball)
        counts = self.relaxation.counts
        before = reversed(forms.rows)
        rows = torch.cat([one[:, :n] for one, n in zip(before, counts, strict=True)], dim=1)
        low, high = choice.low, choice.high
        unsure = (low < 0) & (high > 0)
        area = torch.where(unsure, -low * high / (high - low).clamp_min(1e-290), 0.0)
        score = area * (rows.clamp_max(0).abs() + 0.5 * rows.clamp_min(0))
        return torch.where(unsure, score + 1e-290, 0.0)

    @staticmethod
    def _part(choice: Choice, units: Tensor, signs: Tensor) -> Choice:
        """The branches with units [S, n] held on one side of 0 each, by signs [n]."""
        signs = signs.to(choice.low.dtype).expand(units.shape)
        low, high = choice.low.gather(1, units), choice.high.gather(1, units)
        low, high = low.where(signs < 0, low.clamp_min(0)), high.where(signs > 0, high.clamp_max(0))
        return replace(
            choice,
            signs=choice.signs.scatter(1, units, signs),
            low=choice.low.scatter(1, units, low),
            high=choice.high.scatter(1, units, high),
        )

    def _tightened(self, choice: Choice, first: int) -> Choice:
        """The branches with tighter bounds on the units of later stages.

        Args:
            choice: The branches.
            first: Number of the first unit that was split, counted over all activations.
        """
        relaxation = self.relaxation
        low, high = (list(end.split(relaxation.counts, 1)) for end in (choice.low, choice.high))
        begin = 0
        for number, count in enumerate(relaxation.counts):
            if number and begin > first:
                unsure = ((low[number] < 0) & (high[number] > 0)).any(dim=0).nonzero().squeeze(1)
                if unsure.numel():
                    lines = [relaxation.enclose(i, low[i], high[i]) for i in range(number)]
                    found = relaxation.unit_bounds(number, unsure, self.ball, lines)
                    old_low, old_high = low[number][:, unsure], high[number][:, unsure]
                    # An empty branch may have bounds that cross.
                    new_low = torch.minimum(torch.maximum(old_low, found[0]), old_high)
                    new_high = torch.maximum(torch.minimum(old_high, found[1]), new_low)
                    low[number] = low[number].index_copy(1, unsure, new_low)
                    high[number] = high[number].index_copy(1, unsure, new_high)
            begin += count
        return replace(choice, low=torch.cat(low, dim=1), high=torch.cat(high, dim=1))
