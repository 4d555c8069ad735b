"""Peers of the margin loss, each in a few lines on the package's own parts.

All have what `margin_ext.training.TrainingLoop` asks of an objective: ``loss`` and ``settings``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext import AverageMarginLoss
from margin_ext.attacks.pgd import attack_gradient
from margin_ext.random_points import unit_ball
from margin_ext.reference.dual import dual_norm
from margin_ext.threat import ThreatModel

__all__ = ["AdversarialTraining", "InputGradientPenalty"]


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy at the worst point of an l2 ball that a few steps find (Madry et al. 2018).

    One step goes from the image itself all the way to the sphere; several begin at a random point
    and take 2.5 eps / steps each. Images stay in [0, 1].

    Attributes:
        eps: Radius.
        steps: Gradient steps.
        criterion: What is minimised at the point found; None: the cross-entropy.
    """

    eps: float
    steps: int
    criterion: AverageMarginLoss | None = None

    def loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        radius = inputs.new_full(inputs.shape[:1], self.eps)
        step = radius if self.steps == 1 else radius * (2.5 / self.steps)
        threat = ThreatModel(p=2, data_range=(0.0, 1.0))
        x = inputs
        if self.steps > 1:
            noise = unit_ball(len(inputs), inputs[0].numel(), 2.0, torch.default_generator)
            start = inputs + self.eps * noise.reshape(inputs.shape)
            x = threat.project(start, inputs, radius)
        for _ in range(self.steps):
            _, grad = attack_gradient(model, x, target, "cross_entropy")
            x = threat.project(threat.step(grad, step, x), inputs, radius)
        if self.criterion is None:
            return cross_entropy(model(x), target)
        return self.criterion.run(model, x, target).loss

    def settings(self) -> dict[str, Any]:
        return {
            "objective": "adversarial training",
            "eps": self.eps,
            "steps": self.steps,
            "criterion": repr(self.criterion),
        }


@dataclass(frozen=True)
class InputGradientPenalty:
    """Cross-entropy plus weight * ||its input gradient||_2 (Drucker and LeCun 1992, Tulip 2018).

    Attributes:
        weight: Of the norm.
    """

    weight: float

    def loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        x = inputs.detach().requires_grad_()
        each = cross_entropy(model(x), target, reduction="none")
        (grad,) = torch.autograd.grad(each.sum(), x, create_graph=True)
        return (each + self.weight * dual_norm(grad, p=2)).mean()

    def settings(self) -> dict[str, Any]:
        return {"objective": "input gradient penalty", **asdict(self)}
