"""What a training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from margin_ext.functional import orthogonality_penalty
from margin_ext.loss import AverageMarginLoss

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """A criterion on the batch, and the orthogonality penalty on the weights.

    Attributes:
        criterion: CrossEntropyLoss or AverageMarginLoss, for instance.
        beta: Weight of the orthogonality penalty.
    """

    criterion: nn.Module
    beta: float = 0.0

    def loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        """The scalar to differentiate, for inputs [B, ...] and target [B]."""
        if isinstance(self.criterion, AverageMarginLoss):
            total = self.criterion.run(model, inputs, target).loss
        else:
            total = self.criterion(model(inputs), target)
        return total + self.beta * orthogonality_penalty(model) if self.beta else total

    def settings(self) -> dict[str, Any]:
        """In words and numbers, for a report and to recognise a checkpoint."""
        return {"criterion": repr(self.criterion), "beta": self.beta}
