"""How far the nearest adversarial example that a search finds lies: an upper bound on the margin.

A first search starts at the first-order distance. Searches toward single classes follow, from the
best point. Then come rounds of searches that begin elsewhere: several times as far out as the best
point, where they find other parts of the boundary on their way back, and at a random point of the
ball that was found. Small steps from the best point end a round. A bisection of the line from the
sample to the best point ends it all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch import Tensor

from margin_ext.bounds.all_classes import AllClasses
from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.bounds.class_search import ClassSearch
from margin_ext.bounds.distance_search import DistanceSearch, SearchObjective
from margin_ext.bounds.margin_sketch import MarginSketch
from margin_ext.models.evaluation_mode import Model
from margin_ext.random_points import Draws
from margin_ext.threat import ThreatModel, require_attackable

__all__ = ["MinimumDistance", "SearchObjective"]

# Steps in l1 for one in other norms.
_LONGER_IN_L1 = 2
# How far out the searches of a round begin, in units of the distance found; nearer in each round.
_FAR_OUT = (20.0, 10.0, 5.0, 3.0)
_NEARER = 0.75
# First step of the last search of a round, in units of the usual one.
_SHORT_STEP = 0.1
# Searches after the first one leave a sample alone whose point lies farther than the largest radius
# that matters by this part; further rounds by half of it, a third of it and so on. On one network,
# 35 of 38 samples that the first search missed and later ones or other libraries broke lay nearer.
_TOO_FAR = 0.3


@register_bound
@dataclass(frozen=True, kw_only=True)
class MinimumDistance:
    """The distance of the nearest adversarial example that gradient searches find.

    A found point has a logit gap of at most 0. A sample's result depends on its index and the
    seed, not on its batch (up to rounding), and not on the units of inputs and logits.

    Attributes:
        steps: Gradient steps of the searches that go toward no single class; in l1
            twice as many, because points become sparse step by step.
        restarts: Rounds of searches that begin elsewhere: four from far out, and one from a random
            point of the ball whose radius was found so far (up to 16 coordinates four).
        targets: Searches toward single classes, after the first search and in each round; each
            takes half of the steps. The runner-up, which the other searches follow, is often not
            the nearest class, even for a linear model. The first time the classes are those with
            the smallest first-order margins, later those with the largest logits at the best point.
        objective: "gap" lowers the logit gap, "ratio" the gap over the scale of the logits. None:
            the ratio for l2 and the gap otherwise, which found nearer points in that norm; of the
            searches from elsewhere every second one lowers the other one.
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
    restarts: int = 1
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
        return cls(steps=60, restarts=2, targets=9, seed=seed)

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
        search = DistanceSearch(
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
        search.too_far = (1 + _TOO_FAR) * largest
        if self.targets and search.unfinished().numel():
            classes = _nearest_classes(model, inputs, label, threat, self.targets)
            search.run_toward(classes, steps // 2)
        for restart in range(self.restarts):
            search.too_far = (1 + _TOO_FAR / (restart + 1)) * largest
            if not search.unfinished().numel():
                break
            objectives = (second, first) if restart % 2 == 0 else (first, second)
            for times, objective in zip(_FAR_OUT, 2 * objectives, strict=True):
                search.objective = self.objective or objective
                search.run_from_afar(times * _NEARER**restart, steps)
            for start in range(search.random_starts):
                search.objective = self.objective or objectives[1]
                draws = Draws(self.seed, f"{self.name}{restart}.{start}", numbers)
                search.run_from_random(steps, largest, draws)
                if self.targets:
                    search.run_toward(search.classes_at_points(self.targets), steps // 2)
                search.objective = self.objective or "gap"
                search.run(steps, start=search.point, longest=_SHORT_STEP)
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
