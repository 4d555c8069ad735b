"""An attack whose long steps follow bent surfaces, which PGD's short ones do not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margin_ext.attacks import AttackLoss, AttackResult
from margin_ext.attacks.pgd import attack_gradient
from margin_ext.models.evaluation_mode import Model
from margin_ext.random_points import Draws
from margin_ext.threat import ThreatModel, require_attackable

__all__ = ["DecayingPGD"]


@dataclass(frozen=True, kw_only=True)
class DecayingPGD:
    """Projected gradient descent with momentum, whose steps shrink by a cosine.

    Attributes:
        loss: "gap" or "cross_entropy".
        steps: Gradient steps.
        first: Length of the first step, in units of the radius; the last one is a hundredth of it.
        momentum: Of the unit gradients.
        seed: Of the random start.
    """

    loss: AttackLoss = "gap"
    steps: int = 100
    first: float = 1.0
    momentum: float = 0.75
    seed: int = 0

    @property
    def name(self) -> str:
        return f"decaying_{self.loss}"

    @property
    def title(self) -> str:
        return f"PGD with decaying steps on the {self.loss.replace('_', '-')}"

    def check(self, threat: ThreatModel) -> None:
        require_attackable(threat)

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> AttackResult:
        """Search the ball of radius eps; a sample leaves the batch when it is misclassified."""
        robust = torch.ones(len(target), dtype=torch.bool, device=inputs.device)
        found = inputs.detach().clone()
        active = torch.arange(len(target), device=inputs.device)
        center, label = found, target
        x = threat.random_point(center, eps, Draws(self.seed, self.name, indices))
        velocity = torch.zeros_like(x)
        for step in range(self.steps + 1):
            gap, grad = attack_gradient(model, x, label, self.loss)
            left = gap > 0
            broken = active[~left]
            robust[broken] = False
            found[broken] = x[~left]
            active, center, label = active[left], center[left], label[left]
            if step == self.steps or not len(active):
                break
            norm = threat.dual_norm(grad[left]).reshape(-1, *[1] * (x.dim() - 1))
            unit = grad[left] / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            velocity = self.momentum * velocity[left] + (1 - self.momentum) * unit
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            length = torch.full_like(
                label, eps * self.first * (0.01 + 0.99 * cosine), dtype=x.dtype
            )
            radius = torch.full_like(length, eps)
            x = threat.attack_step(
                x[left], velocity, length, center=center, radius=radius, sparse=True
            )
        return AttackResult(robust, found)
