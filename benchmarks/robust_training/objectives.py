"""Peers of the margin loss, each in a few lines on the package's own parts.

All have what `margin_ext.training.Trial` asks of an objective: ``loss`` and ``settings``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext import AverageMarginLoss
from margin_ext.reference.dual import dual_norm
from margin_ext.training import AdversarialTraining

__all__ = ["InputGradientPenalty", "MarginAtTheAttack"]


@dataclass(frozen=True)
class MarginAtTheAttack(AdversarialTraining):
    """The margin loss at the point that adversarial training would take.

    Attributes:
        criterion: What is minimised there.
    """

    criterion: AverageMarginLoss | None = None

    def loss(
        self, model: nn.Module, inputs: Tensor, target: Tensor, *, radius: Tensor | None = None
    ) -> Tensor:
        assert self.criterion is not None
        x = self.points(model, inputs, target, radius=radius)
        return self.criterion.run(model, x, target).loss

    def settings(self) -> dict[str, Any]:
        plain = AdversarialTraining(self.eps, self.steps).settings()
        return {**plain, "criterion": repr(self.criterion)}


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
