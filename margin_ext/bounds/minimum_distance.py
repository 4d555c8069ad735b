"""How far the nearest adversarial example that a search finds lies: an upper bound on the margin.

The radius around each sample shrinks while the point on it is adversarial and grows while it is
not, as in DDN (Rony et al., arXiv 1811.09600) and FMN (Pintor et al., arXiv 2102.12827). Here the
search lowers the logit gap, or the gap over the logits' scale, and starts at the first-order
distance. Searches toward single classes follow, from the best point. The same is repeated from
random points of the ball that was found. A bisection of the line from the sample to the best point
ends it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from margin_ext.bounds.all_classes import AllClasses
from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.bounds.class_search import ClassSearch
from margin_ext.bounds.logit_ratio import logit_ratio
from margin_ext.bounds.margin_sketch import MarginSketch
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.per_sample import per_sample
from margin_ext.random_points import Draws
from margin_ext.threat import ThreatModel, require_attackable

__all__ = ["MinimumDistance", "SearchObjective"]

# What a search lowers.
SearchObjective: TypeAlias = Literal["gap", "ratio"]

# Of the radius: by how much it changes in the first step of a search, and the last step's part.
_CHANGE = 0.1
_LAST = 0.01
# Steps in l1 for one in other norms.
_LONGER_IN_L1 = 2
# Random points that are tried for a start, times the number of coordinates: in few dimensions they
# find ways that gradients do not, and in many they find nothing.
_TRIED = 128
# The first step in units of the radius.
_STEP = 2.0
# Searches after the first one leave a sample alone whose point lies farther than the largest radius
# that matters by this part; further rounds by half of it, a third of it and so on. On one network,
# 35 of 38 samples that the first search missed and later ones or other libraries broke lay nearer.
_FAR = 0.3


@register_bound
@dataclass(frozen=True, kw_only=True)
class MinimumDistance:
    """The distance of the nearest adversarial example that gradient searches find.

    A found point has a logit gap of at most 0. A sample's result depends on its index and the
    seed, not on its batch (up to rounding), and not on the units of inputs and logits.

    Attributes:
        steps: Gradient steps of the search from the sample and of those from random points; in l1
            twice as many, because points become sparse step by step.
        restarts: Searches from random points of the ball whose radius was found so far.
        targets: Searches toward single classes after each of these; each takes half of the steps.
            The runner-up, which the other searches follow, is often not the nearest class, even
            for a linear model. The first time the classes are those with the smallest first-order
            margins, later those with the largest logits at the best point.
        objective: "gap" lowers the logit gap, "ratio" the gap over the scale of the logits. None:
            the ratio for l2 and the gap otherwise, which found nearer points in that norm; every
            second restart lowers the other one.
        bisections: Forward passes that shorten the best point found.
        in_range: Keep adversarial examples in the data range, where the threat model has one.
        seed: Seed of the random points.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> found = MinimumDistance()(model, x, label, threat=ThreatModel(p=2))
        >>> round(float(found.distance), 3)  # (3 - 1) / sqrt(2)
        1.414
    """

    steps: int = 40
    restarts: int = 2
    targets: int = 5
    objective: SearchObjective | None = None
    bisections: int = 16
    in_range: bool = True
    seed: int = 0

    name: ClassVar[str] = "minimum_distance"
    title: ClassVar[str] = "minimum distance (upper bound)"
    kind: ClassVar[BoundKind] = "upper"

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.bisections, self.targets, self.restarts) < 0:
            raise ValueError(
                "steps must be at least 2, restarts, targets and bisections not negative"
            )
        if self.objective is not None and self.objective not in get_args(SearchObjective):
            raise ValueError(
                f"objective must be None or from {', '.join(get_args(SearchObjective))}, "
                f"got {self.objective!r}"
            )

    @classmethod
    def thorough(cls, seed: int = 0) -> MinimumDistance:
        """About three times the default's time: longer searches, more starts and classes."""
        return cls(steps=60, restarts=3, targets=9, seed=seed)

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where the search does not exist for this norm."""
        require_attackable(threat)

    def settings(self) -> dict[str, Any]:
        """Everything that the distances depend on."""
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        """Search for the nearest points that are not classified as label.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            label: [B].
            threat: The norm and the data range.
            indices: Indices of the samples in the whole data [B]; None: 0 to B - 1.

        Returns:
            Distances [B]: 0 where the sample itself is misclassified, infinite where nothing was
            found. Points [B, ...]: the sample where nothing was found.
        """
        return self.search(model, inputs, label, threat=threat, indices=indices)

    def search(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
        enough: float = 0.0,
        largest: float = math.inf,
    ) -> BoundResult:
        """As a call; a sample is left alone as soon as a point within ``enough`` is found.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            label: [B].
            threat: The norm and the data range.
            indices: Indices of the samples in the whole data [B]; None: 0 to B - 1.
            enough: A distance below which it does not matter how near the point is.
            largest: A distance beyond which points do not matter: random starts lie within.
        """
        self.check(threat)
        numbers = list(range(inputs.shape[0]) if indices is None else indices)
        search = _Search(
            model,
            threat if self.in_range else threat.without_range(),
            inputs,
            label,
            enough,
        )
        first: SearchObjective = "ratio" if threat.p == 2 else "gap"
        second: SearchObjective = "gap" if threat.p == 2 else "ratio"
        search.objective = self.objective or first
        steps = self.steps * (_LONGER_IN_L1 if threat.p == 1 else 1)
        search.run(steps)
        search.too_far = (1 + _FAR) * largest
        if self.targets and search.unfinished().numel():
            classes = _nearest_classes(model, inputs, label, threat, self.targets)
            search.run_toward(classes, steps // 2)
        for restart in range(self.restarts):
            search.objective = self.objective or (second if restart % 2 else first)
            search.too_far = (1 + _FAR / (restart + 1)) * largest
            radius = search.distance.clamp_max(largest)
            left = search.unfinished(radius)
            if not left.numel():
                continue
            draws = Draws(self.seed, f"{self.name}{restart}", [numbers[i] for i in left.tolist()])
            start = search.random_start(left, radius[left], draws)
            search.run(steps, start=start, radius=radius)
            if self.targets:
                search.run_toward(search.classes_at_points(self.targets), steps // 2)
        search.shorten(self.bisections)
        return BoundResult(search.distance, search.point)


def _nearest_classes(
    model: Model, inputs: Tensor, label: Tensor, threat: ThreatModel, count: int
) -> list[Tensor]:
    """Classes [B] with the smallest first-order margins, nearest first."""
    threats = [threat]
    search = ClassSearch(model, inputs, label, threats, count=count)
    if not search.by_sketch(MarginSketch(AllClasses(), threats)):
        search.in_order(None)
    return list(search.order.gather(1, search.nearest.rank[0]).unbind(dim=1))


class _Search:
    """The best points of B samples so far, and searches that improve them.

    Attributes:
        distance: Distances of the best points [B]; infinite where there is none.
        point: The best points [B, ...]; the sample where there is none.
        objective: What the next search lowers.
        too_far: Samples whose best point lies farther are not searched.
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
        self.reach = threat.reach(self.center).to(wide)

    def unfinished(self, radius: Tensor | None = None) -> Tensor:
        """Indices of the samples that are still searched, of those with a finite radius [B]."""
        left = ~(self.distance <= self.enough)
        left &= (self.distance <= self.too_far) | torch.isinf(self.distance)
        if radius is not None:
            left &= torch.isfinite(radius)
        return left.nonzero().squeeze(1)

    def run(
        self,
        steps: int,
        *,
        target: Tensor | None = None,
        start: Tensor | None = None,
        radius: Tensor | None = None,
    ) -> None:
        """One search: after the runner-up of the moment, or toward one class [B].

        Args:
            steps: Gradient steps.
            target: The class.
            start: Where to start [B, ...]; None: at the samples.
            radius: Radius of the ball in which to start [B]; infinite: the sample is left out.
                None: the distance found so far, or the first-order distance.
        """
        active = self.unfinished(radius)
        x = (self.center if start is None else start)[active]
        # Nothing found yet in this search: the radius follows the tangent.
        found = torch.zeros_like(active, dtype=torch.bool)
        within = self.distance if radius is None else torch.minimum(radius, self.distance)
        within = within[active]
        within = torch.where(torch.isfinite(within), within, 0.0)
        for step in range(steps):
            if not active.numel():
                return
            decay = _LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / steps)) / 2
            gap, chosen, grad = self._gaps(x, active, target)
            distance = self.threat.distance(x, self.center[active])
            adversarial = gap <= 0
            self._keep(active, x, distance, adversarial)
            found |= adversarial
            left = ~(self.distance[active] <= self.enough)
            if not bool(left.all()):
                active, x, found, within = active[left], x[left], found[left], within[left]
                chosen, grad, distance = chosen[left], grad[left], distance[left]
                adversarial = adversarial[left]
            center, best = self.center[active], self.distance[active]
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

    def random_start(self, rows: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        """The samples [B, ...], with some rows at the random point that has the smallest gap.

        Args:
            rows: Indices of samples.
            radius: Radius of the ball around each of them.
            draws: Their random numbers.
        """
        start, center, label = self.center.clone(), self.center[rows], self.label[rows]
        tried = max(1, _TRIED // center[0].numel())
        if tried == 1:
            start[rows] = self.threat.random_point(center, radius, draws)
            return start
        smallest = torch.full_like(radius, math.inf)
        for number in range(tried):
            own = dataclasses.replace(draws, stream=f"{draws.stream}.{number}")
            # Not uniform in the ball: most of a ball is near its surface.
            x = self.threat.random_point(center, radius * (number + 1) / tried, own)
            with torch.no_grad():
                gap = logit_gap(checked_logits(self.model, x), label).gap
            self._keep(rows, x, self.threat.distance(x, center), gap <= 0)
            better = gap < smallest
            smallest = torch.where(better, gap.to(smallest.dtype), smallest)
            start[rows[better]] = x[better]
        return start

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
        """Bisect the line from each sample to its point for the end of the adversarial part."""
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
                adversarial = logit_gap(checked_logits(self.model, x), label).gap <= 0
                self._keep(active, x, self.threat.distance(x, center), adversarial)
                high = torch.where(adversarial, middle, high)
                low = torch.where(adversarial, low, middle)
