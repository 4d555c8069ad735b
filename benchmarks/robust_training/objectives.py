"""Peers of the margin loss that the package itself does not offer.

They have what `margin_ext.training.TrainingLoop` asks of an objective: ``loss`` and ``settings``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext.reference.dual import dual_norm

__all__ = ["InputGradientPenalty"]


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
