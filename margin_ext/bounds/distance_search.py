"""One search after another for the nearest adversarial examples of a batch.

The radius around each sample shrinks while the point on it is adversarial and grows while it is
not, as in DDN (Rony et al., arXiv 1811.09600) and FMN (Pintor et al., arXiv 2102.12827). Here the
search lowers the logit gap, or the gap over the logits' scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from margin_ext.bounds.logit_ratio import logit_ratio
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.per_sample import per_sample
from margin_ext.random_points import Draws, unit_ball
from margin_ext.threat import ThreatModel

__all__ = ["DistanceSearch", "SearchObjective"]

# What a search lowers.
SearchObjective: TypeAlias = Literal["gap", "ratio"]

# Of the radius: by how much it changes in the first step of a search, and the last step's part.
_CHANGE = 0.1
_LAST = 0.01
# The first step in units of the radius.
_STEP = 2.0
# Random points that are tried for a start, times the number of coordinates, and up to how many
# coordinates: in few dimensions they find ways that gradients do not, in many they find nothing.
_TRIED = 8192
_FEW_COORDINATES = 16
# Random starts in a round, where coordinates are few.
_STARTS = 4
# Of them so many in one batch of the model, or as many as there are samples.
_AT_ONCE = 1024
# The first of them in units of the last one, where no length is known.
_SHORTEST = 1e-5
# How far beyond the boundary the bisection goes, in units of the largest logit's rounding: the same
# point has logits that differ by some units in batches of another size. At most a hundredth of that
# logit, about one unit of bfloat16: more would lengthen distances.
_BEYOND = 32.0
_MOST_BEYOND = 0.01


class DistanceSearch:
    """The best points of B samples so far, and searches that improve them.

    Attributes:
        distance: Distances of the best points [B]; infinite where there is none.
        point: The best points [B, ...]; the sample where there is none.
        objective: What the next search lowers.
        too_far: Samples whose best point lies farther are not searched.
        random_starts: How many random starts a round should have.
    """

    def __init__(
        self, model: Model, threat: ThreatModel, inputs: Tensor, label: Tensor, enough: float
    ) -> None:
        self.model = model
        self.threat = threat
        self.center = inputs.detach()
        self.label = label
        self.objective: SearchObjective = "gap"
        self.enough = enough
        self.too_far = math.inf
        wide = torch.promote_types(inputs.dtype, torch.float32)
        self.distance = torch.full(label.shape, math.inf, dtype=wide, device=inputs.device)
        self.point = self.center.clone()
        self.reach = threat.reach(self.center.to(wide)).clamp_max(_largest_radius(inputs, threat))
        few = self.center.shape[1:].numel() <= _FEW_COORDINATES
        self.random_starts = _STARTS if few else 1

    def unfinished(self) -> Tensor:
        """Indices of the samples that are still searched."""
        left = ~(self.distance <= self.enough)
        left &= (self.distance <= self.too_far) | torch.isinf(self.distance)
        return left.nonzero().squeeze(1)

    def radius(self, times: float = 1.0, largest: float = math.inf) -> Tensor:
        """So many times the distances found, at most largest [B].

        Where nothing is found a part of the reach, another one for other times.
        """
        known = torch.isfinite(self.distance)
        return torch.where(known, times * self.distance, self.reach / times).clamp_max(largest)

    def run(
        self,
        steps: int,
        *,
        target: Tensor | None = None,
        start: Tensor | None = None,
        radius: Tensor | None = None,
        apart: bool = False,
        longest: float = 1.0,
    ) -> None:
        """One search: after the runner-up of the moment, or toward one class [B].

        Args:
            steps: Gradient steps.
            target: The class.
            start: Where to start [B, ...]; None: at the samples.
            radius: Radius of the ball in which to start [B]. None: the distance found so far, or
                the first-order distance.
            apart: Search beyond the best points too, as if nothing had been found yet.
            longest: Lengths of steps and changes of the radius, in units of the usual ones.
        """
        active = self.unfinished()
        nearest = torch.full_like(self.distance, math.inf) if apart else self.distance
        x = (self.center if start is None else start)[active]
        # Nothing found yet in this search: the radius follows the tangent.
        found = torch.zeros_like(active, dtype=torch.bool)
        within = nearest if radius is None else torch.minimum(radius, nearest)
        within = within[active]
        within = torch.where(torch.isfinite(within), within, 0.0)
        for step in range(steps):
            if not active.numel():
                return
            decay = _LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / steps)) / 2
            decay *= longest
            gap, chosen, grad = self._gaps(x, active, target)
            distance = self.threat.distance(x, self.center[active])
            adversarial = gap <= 0
            self._keep(active, x, distance, adversarial)
            if apart:
                here = torch.where(adversarial, distance.to(nearest.dtype), math.inf)
                nearest[active] = torch.minimum(nearest[active], here)
            found |= adversarial
            left = ~(self.distance[active] <= self.enough)
            if not bool(left.all()):
                active, x, found, within = active[left], x[left], found[left], within[left]
                chosen, grad, distance = chosen[left], grad[left], distance[left]
                adversarial = adversarial[left]
            center, best = self.center[active], nearest[active]
            grad = self.threat.inward(grad, x)
            change = _CHANGE * decay
            # Until something is found the tangent tells how far to go, and at least a tenth
            # farther, since the range may hold the point back.
            tangent = (chosen / self.threat.dual_norm(grad)).nan_to_num(0.0, posinf=math.inf)
            onward = torch.maximum(distance + 1.02 * tangent.clamp_min(0), 1.1 * within)
            within = torch.where(found, within * (1 + change), onward)
            within = torch.where(adversarial, torch.minimum(within, best) * (1 - change), within)
            within = torch.minimum(within, best * (1 - change / 2))
            within = torch.minimum(within, self.reach[active])
            x = self.threat.attack_step(
                x, grad, _STEP * decay * within, center=center, radius=within, sparse=True
            )

    def run_toward(self, targets: Sequence[Tensor], steps: int) -> None:
        """One search toward each of the classes [B] in turn, from the best points."""
        for target in targets:
            self.run(steps, target=target, start=self.point)

    def run_from_afar(self, times: float, steps: int) -> None:
        """One search of its own, whose first radius is so many times the distance found.

        On its way back it meets other parts of the boundary than a search that goes out.
        """
        self.run(steps, radius=self.radius(times), apart=True)

    def run_from_random(self, steps: int, largest: float, draws: Draws) -> None:
        """One search from random points of the ball whose radius was found, at most largest.

        In few dimensions many points are tried: the nearest adversarial ones are kept, and the
        search begins at the one with the smallest gap.

        Args:
            steps: Gradient steps.
            largest: Largest radius that matters.
            draws: The random numbers of all B samples.
        """
        rows = self.unfinished()
        if not rows.numel():
            return
        own = replace(draws, indices=[draws.indices[i] for i in rows.tolist()])
        radius = self.radius(largest=largest)
        start = self.center.clone()
        start[rows] = self._random_start(rows, radius[rows], own)
        self.run(steps, start=start, radius=radius)

    def _random_start(self, rows: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        center, dims = self.center[rows], self.center.shape[1:].numel()
        if self.random_starts == 1:
            return self.threat.random_point(center, radius, draws)
        tried = max(1, _TRIED // dims)
        generators = draws.generators(center.device)
        unit = torch.stack([unit_ball(tried, dims, self.threat.p, g) for g in generators])
        # Not uniform in the ball: most of a ball is near its surface.
        part = torch.arange(1, tried + 1, device=center.device) / tried
        # Where nothing is found yet the right length is not known either.
        known = torch.isfinite(self.distance[rows]).unsqueeze(1)
        radii = radius.unsqueeze(1) * torch.where(known, part, _SHORTEST ** (1 - part))
        start, least = center.clone(), torch.full_like(radius, math.inf)
        row = torch.arange(len(rows), device=center.device)
        for chosen in torch.arange(tried, device=center.device).split(
            max(1, _AT_ONCE // len(rows))
        ):
            points = self._in_balls(center, unit[:, chosen], radii[:, chosen])
            with torch.no_grad():
                logits = checked_logits(self.model, points.flatten(0, 1))
            label = self.label[rows].repeat_interleave(len(chosen))
            gap = logit_gap(logits, label).gap.reshape(points.shape[:2])
            around = center.repeat_interleave(len(chosen), 0)
            distance = self.threat.distance(points.flatten(0, 1), around).reshape(gap.shape)
            distance = torch.where(gap <= 0, distance, math.inf)
            nearest = distance.argmin(1)
            found = distance[row, nearest]
            self._keep(rows, points[row, nearest], found, torch.isfinite(found))
            lowest = gap.argmin(1)
            better = gap[row, lowest] < least
            least = torch.where(better, gap[row, lowest].to(least.dtype), least)
            start = torch.where(per_sample(better, start), points[row, lowest], start)
        return start

    def _in_balls(self, center: Tensor, unit: Tensor, radii: Tensor) -> Tensor:
        """Points [B, n, ...]: around each center the offsets [B, n, D] times the radii [B, n]."""
        around = center.repeat_interleave(radii.shape[1], 0)
        flat = radii.flatten().to(center.dtype)
        offset = per_sample(flat, around) * unit.to(center.dtype).reshape(around.shape)
        points = self.threat.project(around + self.threat.in_input_units(offset), around, flat)
        return points.reshape(*radii.shape, *center.shape[1:])

    def classes_at_points(self, count: int) -> list[Tensor]:
        """The classes [B] other than the label with the largest logits at the best points."""
        with torch.no_grad():
            order = class_order(checked_logits(self.model, self.point), self.label)
        return list(order[:, :count].unbind(dim=1))

    def _keep(self, active: Tensor, x: Tensor, distance: Tensor, adversarial: Tensor) -> None:
        """Take over the adversarial points that are nearer than the best so far."""
        nearer = adversarial & (distance < self.distance[active])
        chosen = active[nearer]
        self.distance[chosen] = distance[nearer].to(self.distance.dtype)
        self.point[chosen] = x[nearer]

    def _gaps(
        self, x: Tensor, active: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gap to the runner-up, objective toward the target, and the gradient that lowers it."""
        label = self.label[active]
        x = x.detach().requires_grad_()
        logits = checked_logits(self.model, x)
        nearest = None if target is None else target[active]
        chosen = logit_gap(logits, label, nearest=nearest).gap
        require_graph(chosen)
        lowered = chosen if self.objective == "gap" else logit_ratio(chosen, logits)
        (grad,) = torch.autograd.grad(-lowered.sum(), x)
        gap = chosen if target is None else logit_gap(logits.detach(), label).gap
        return gap.detach(), lowered.detach(), grad

    def shorten(self, bisections: int) -> None:
        """Bisect the line from each sample to its point for the end of the adversarial part.

        A point of the line is kept if it lies beyond the boundary by more than rounding, so that it
        is still adversarial in a batch of another size.
        """
        active = (torch.isfinite(self.distance) & (self.distance > self.enough)).nonzero()
        active = active.squeeze(1)
        if not active.numel():
            return
        center, label = self.center[active], self.label[active]
        offset = self.point[active] - center
        low = torch.zeros_like(self.distance[active], dtype=offset.dtype)
        high = torch.ones_like(low)
        with torch.no_grad():
            for _ in range(bisections):
                middle = (low + high) / 2
                x = center + offset * per_sample(middle, offset)
                x = self.threat.clamp(x)
                logits = checked_logits(self.model, x)
                rounding = min(_BEYOND * torch.finfo(logits.dtype).eps, _MOST_BEYOND)
                beyond = rounding * logits.abs().amax(1)
                adversarial = logit_gap(logits, label).gap <= -beyond
                self._keep(active, x, self.threat.distance(x, center), adversarial)
                high = torch.where(adversarial, middle, high)
                low = torch.where(adversarial, low, middle)


def _largest_radius(inputs: Tensor, threat: ThreatModel) -> float:
    """Beyond it points, or their squares where there is no data range, leave the inputs' type."""
    largest = float(torch.finfo(inputs.dtype).max)
    return largest**0.5 if threat.data_range is None else largest / 4
