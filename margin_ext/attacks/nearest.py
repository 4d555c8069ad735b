"""Whether the nearest adversarial example lies within a radius: the default attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from margin_ext.attacks.attack import AttackResult, register_attack
from margin_ext.bounds import BoundResult, MinimumDistance
from margin_ext.models.evaluation_mode import Model
from margin_ext.per_sample import per_sample
from margin_ext.threat import ThreatModel, check_radius

__all__ = ["Nearest"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The search for the nearest adversarial example, which answers for all radii at once.

    A sample leaves the search as soon as a point within the smallest radius is found.

    Attributes:
        search: Steps, random starts and target classes; ``MinimumDistance.thorough()`` is slower
            and finds a little more.
        seed: Seed of the random starts.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0], [1.1, 1.0]]), torch.tensor([0, 0])
        >>> Nearest()(model, x, label, 0.5, threat=ThreatModel(p=2)).robust
        tensor([ True, False])
    """

    search: MinimumDistance = field(default_factory=MinimumDistance)
    seed: int = 0

    name: ClassVar[str] = "nearest"
    title: ClassVar[str] = "nearest adversarial example"

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where the search does not exist for this norm."""
        self.search.check(threat)

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on."""
        return {**self.search.settings(), "seed": self.seed}

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> AttackResult:
        """Attack inputs [B, ...] of class target [B] within eps."""
        check_radius(eps)
        found = self.sweep(model, inputs, target, [eps], threat=threat, indices=indices)
        robust = found.distance > eps
        rows = per_sample(robust, inputs)
        point = inputs if found.point is None else found.point
        return AttackResult(robust, torch.where(rows, inputs.detach(), point))

    def sweep(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        radii: Sequence[float],
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        """Distances [B] and points of adversarial examples, as near as the radii [R] ask for."""
        search = dataclasses.replace(self.search, seed=self.seed)
        return search.search(
            model,
            inputs,
            target,
            threat=threat,
            indices=indices,
            enough=min(radii),
            largest=max(radii),
        )
