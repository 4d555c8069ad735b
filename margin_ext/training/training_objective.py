"""What a training minimises."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from margin_ext.functional import orthogonality_penalty
from margin_ext.gradient_modes import Distance
from margin_ext.loss import AverageMarginLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Objective", "TrainingObjective"]


class TrainingObjective(Protocol):
    """What a trial asks of an objective.

    An objective that changes from step to step also has ``state_dict()`` and
    ``load_state_dict(state)``, with tensors and plain values, so that a continued training goes on
    from the same state.
    """

    def loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        """The scalar to differentiate: a mean over the samples, inputs [B, ...] and target [B]."""

    def settings(self) -> dict[str, Any]:
        """Words and numbers for a report, by which a checkpoint is recognised too."""


@dataclass(frozen=True)
class Objective:
    """A criterion on the batch, and the orthogonality penalty on the weights.

    Attributes:
        criterion: CrossEntropyLoss or AverageMarginLoss, for instance.
        beta: Weight of the orthogonality penalty.

    Example:
        >>> from margin_ext.training import Objective
        >>> Objective(AverageMarginLoss(tau=0.5), beta=1e-3).settings()["beta"]
        0.001
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

    def samples(self, indices: Tensor) -> AbstractContextManager[None]:
        """Say which samples of the data the batch inside holds, to a margin that remembers."""
        mode = self._distance
        return nullcontext() if mode is None else mode.samples(indices)

    @property
    def _distance(self) -> Distance | None:
        mode = getattr(self.criterion, "margin", None)
        return mode if isinstance(mode, Distance) and mode.memory else None

    def settings(self) -> dict[str, Any]:
        """Words and numbers for a report, by which a checkpoint is recognised too."""
        return {"criterion": repr(self.criterion), "beta": self.beta}

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: the criterion's count of steps, for ``every``."""
        if isinstance(self.criterion, AverageMarginLoss):
            mode = self._distance
            kept = {} if mode is None else mode.state_dict()
            return {"steps": self.criterion.steps, **kept}
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        if isinstance(self.criterion, AverageMarginLoss):
            self.criterion.steps = int(state["steps"])
            if self._distance is not None:
                self._distance.load_state_dict(state)
