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

from margin_ext.attacks.pgd import attack_gradient, check_ball
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, class_order
from margin_ext.models.evaluation_mode import Model
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["DistanceAttack", "NearestAdversarial", "nearest_adversarial"]


@dataclass(frozen=True)
class DistanceAttack:
    """How the attack searches.

    Attributes:
        steps: Gradient steps of each search.
        targets: Searches toward single classes, those with the smallest first-order margins, in
            addition to the one that follows the runner-up of the moment. The runner-up is often
            not the nearest class, even for a linear model.
        radius_change: By which share the radius first changes in a step; falls to a hundredth.
        step: Length of the first step relative to the radius; falls to a hundredth.
        bisections: Forward passes that shorten the best point found.
        box: Keep adversarial examples in the data range, where one is given.
    """

    steps: int = 100
    targets: int = 1
    radius_change: float = 0.1
    step: float = 1.0
    bisections: int = 16
    box: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.bisections < 0 or self.targets < 0:
            raise ValueError("steps must be at least 1, targets and bisections not negative")
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
    threat = ThreatModel(
        p=float(p), data_range=data_range if settings.box else None, input_std=input_std
    )
    search = _Search(model, threat, settings)
    found = search.run(inputs.detach(), label, None)
    if settings.targets:
        for target in _nearest_classes(model, inputs, label, threat, settings.targets):
            other = search.run(inputs.detach(), label, target)
            nearer = other.distance < found.distance
            found.distance[nearer] = other.distance[nearer]
            found.point[nearer] = other.point[nearer]
    return found


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
    settings: DistanceAttack

    def run(self, center: Tensor, label: Tensor, target: Tensor | None) -> NearestAdversarial:
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
            gap, way, grad = self._gaps(x, label, target)
            distance = threat.distance(x, center)
            adversarial = gap <= 0
            nearer = adversarial & (distance < best)
            best = torch.where(nearer, distance.to(best.dtype), best)
            best_point[nearer] = x[nearer]
            if bounds is not None:
                # Directions that lead out of the box from its faces are of no use.
                low, high = bounds
                grad = grad.masked_fill(((x <= low) & (grad < 0)) | ((x >= high) & (grad > 0)), 0.0)
            norm = threat.dual_norm(grad)
            to_boundary = way / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            change = settings.radius_change * decay
            # Until something is found the tangent tells how far to go, and at least a tenth
            # farther, since the box may hold the point back.
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
        if target is None:
            gap, grad = attack_gradient(self.model, x, label, "gap")
            return gap, gap, grad
        x = x.detach().requires_grad_()
        logits = checked_logits(self.model, x)
        way = logit_gap(logits, label, nearest=target).gap
        (grad,) = torch.autograd.grad(-way.sum(), x)
        return logit_gap(logits.detach(), label).gap, way.detach(), grad


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
