"""How far the nearest adversarial example that a search finds lies: an upper bound on the margin.

The radius around each sample shrinks while the point on it is adversarial and grows while it is
not, as in DDN (Rony et al., arXiv 1811.09600) and FMN (Pintor et al., arXiv 2102.12827); here the
search lowers the logit gap, starts at the first-order distance, and ends with a bisection of the
line from the sample to the best point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.threat import ThreatModel, require_attackable

__all__ = ["MinimumDistance"]


@register_bound
@dataclass(frozen=True, kw_only=True)
class MinimumDistance:
    """The distance of the nearest adversarial example that a gradient search finds.

    The search is deterministic, and a sample's result does not depend on its batch (up to
    rounding). A found point has a logit gap of at most 0.

    Attributes:
        steps: Gradient steps of each search.
        targets: Searches toward single classes, those with the smallest first-order margins, in
            addition to the one that follows the runner-up of the moment. The runner-up is often
            not the nearest class, even for a linear model.
        radius_change: By which fraction the radius first changes in a step; falls to a hundredth.
        step: Length of the first step relative to the radius; falls to a hundredth.
        bisections: Forward passes that shorten the best point found.
        in_range: Keep adversarial examples in the data range, where the threat model has one.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> found = MinimumDistance(steps=50)(model, x, label, threat=ThreatModel(p=2))
        >>> round(float(found.distance), 3)  # (3 - 1) / sqrt(2)
        1.414
    """

    steps: int = 100
    targets: int = 1
    radius_change: float = 0.1
    step: float = 1.0
    bisections: int = 16
    in_range: bool = True

    name: ClassVar[str] = "minimum_distance"
    title: ClassVar[str] = "minimum distance (upper bound)"
    kind: ClassVar[BoundKind] = "upper"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.bisections < 0 or self.targets < 0:
            raise ValueError("steps must be at least 1, targets and bisections not negative")
        if not 0 < self.radius_change < 1 or not self.step > 0:
            raise ValueError("radius_change must lie in (0, 1) and step be positive")

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
            indices: Not used: nothing is random.

        Returns:
            Distances [B]: 0 where the sample itself is misclassified, infinite where nothing was
            found. Points [B, ...]: the sample where nothing was found.
        """
        self.check(threat)
        search = _Search(model, threat if self.in_range else threat.without_range(), self)
        found = search.run(inputs.detach(), label, None)
        if self.targets:
            for target in _nearest_classes(model, inputs, label, threat, self.targets):
                found = nearer_of(found, search.run(inputs.detach(), label, target))
        return found


def nearer_of(one: BoundResult, other: BoundResult) -> BoundResult:
    """The nearer point of two results, sample by sample."""
    if one.point is None or other.point is None:
        raise ValueError("only results with points can be joined")
    nearer = other.distance < one.distance
    rows = nearer.reshape(-1, *[1] * (one.point.dim() - 1))
    return BoundResult(
        torch.where(nearer, other.distance, one.distance),
        torch.where(rows, other.point, one.point),
    )


def _nearest_classes(
    model: Model, inputs: Tensor, label: Tensor, threat: ThreatModel, count: int
) -> list[Tensor]:
    """Classes [B] with the smallest first-order margins, nearest first."""
    x = inputs.detach().requires_grad_()
    logits = checked_logits(model, x)
    order = class_order(logits, label)
    ranks = order.shape[1]
    margins = []
    for rank in range(ranks):
        gap = logit_gap(logits, label, nearest=order[:, rank]).gap
        (grad,) = torch.autograd.grad(gap.sum(), x, retain_graph=rank + 1 < ranks)
        norm = threat.dual_norm(grad)
        margins.append(gap.detach() / norm.clamp_min(torch.finfo(norm.dtype).tiny))
    nearest = torch.stack(margins, dim=1).argsort(dim=1, stable=True)
    return [order.gather(1, nearest[:, i : i + 1]).squeeze(1) for i in range(min(count, ranks))]


@dataclass(frozen=True)
class _Search:
    model: Model
    threat: ThreatModel
    settings: MinimumDistance

    def run(self, center: Tensor, label: Tensor, target: Tensor | None) -> BoundResult:
        """One search, toward one class [B] or after the runner-up of the moment."""
        settings = self.settings
        threat = self.threat
        bounds = threat.bounds(center)
        x = center
        wide = torch.promote_types(center.dtype, torch.float32)
        best = torch.full(label.shape, math.inf, dtype=wide, device=center.device)
        best_point = center.clone()
        radius = torch.zeros_like(best)
        for step in range(settings.steps):
            decay = 0.01 + 0.99 * (1 + math.cos(math.pi * step / settings.steps)) / 2
            gap, chosen, grad = self._gaps(x, label, target)
            distance = threat.distance(x, center)
            adversarial = gap <= 0
            nearer = adversarial & (distance < best)
            best = torch.where(nearer, distance.to(best.dtype), best)
            best_point[nearer] = x[nearer]
            if bounds is not None:
                # Directions that lead out of the range from its faces are of no use.
                low, high = bounds
                grad = grad.masked_fill(((x <= low) & (grad < 0)) | ((x >= high) & (grad > 0)), 0.0)
            norm = threat.dual_norm(grad)
            to_boundary = chosen / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            change = settings.radius_change * decay
            # Until something is found the tangent tells how far to go, and at least a tenth
            # farther, since the range may hold the point back.
            onward = torch.maximum(distance + 1.02 * to_boundary.clamp(0, 1e6), 1.1 * radius)
            radius = torch.where(
                adversarial,
                torch.minimum(radius, best) * (1 - change),
                torch.where(torch.isinf(best), onward.clamp_max(1e6), radius * (1 + change)),
            )
            length = settings.step * decay * radius
            x = threat.project(threat.step(grad, length, x), center, radius)
        return _shorten(self.model, center, label, best, best_point, settings.bisections)

    def _gaps(
        self, x: Tensor, label: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gap to the runner-up, gap to the target, and the gradient that lowers the latter."""
        x = x.detach().requires_grad_()
        logits = checked_logits(self.model, x)
        chosen = logit_gap(logits, label, nearest=target).gap
        require_graph(chosen)
        (grad,) = torch.autograd.grad(-chosen.sum(), x)
        gap = chosen if target is None else logit_gap(logits.detach(), label).gap
        return gap.detach(), chosen.detach(), grad


def _shorten(
    model: Model, center: Tensor, label: Tensor, best: Tensor, point: Tensor, bisections: int
) -> BoundResult:
    """Bisect the line from the sample to the point for the end of its adversarial part."""
    shape = (-1, *[1] * (center.dim() - 1))
    low, high = torch.zeros_like(best), torch.ones_like(best)
    offset = point - center
    with torch.no_grad():
        for _ in range(bisections):
            middle = (low + high) / 2
            x = center + offset * middle.reshape(shape).to(offset.dtype)
            gap = logit_gap(checked_logits(model, x), label).gap
            high = torch.where(gap <= 0, middle, high)
            low = torch.where(gap <= 0, low, middle)
    fraction = torch.where(torch.isfinite(best) & (best > 0), high, torch.ones_like(high))
    shortened = center + offset * fraction.reshape(shape).to(offset.dtype)
    return BoundResult(best * fraction, shortened)
