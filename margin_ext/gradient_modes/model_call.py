"""How a user's model becomes a function from inputs to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from margin_ext.target_kinds import two_class_logits

__all__ = ["ModelCall", "PassOutput", "require_logits"]


class PassOutput(NamedTuple):
    """What a pass through the model gave.

    Attributes:
        whole: All that the model returned.
        logits: Its logits, as they were returned.
    """

    whole: Any
    logits: Tensor

    @property
    def class_logits(self) -> Tensor:
        """[B, C] or [B, C, d1, ...] with C >= 2: one logit stands for two classes."""
        return two_class_logits(self.logits)


@dataclass(frozen=True)
class ModelCall:
    """Maps the model and inputs to logits; both fields are arguments of ``criterion.run``."""

    call: Callable[[Any, Tensor], Any] | None = None
    logits_fn: Callable[[Any], Tensor] | None = None

    def output(self, model: Any, inputs: Tensor) -> PassOutput:
        """Everything that the model returns for inputs [B, ...]."""
        whole = model(inputs) if self.call is None else self.call(model, inputs)
        logits = whole if self.logits_fn is None else self.logits_fn(whole)
        return PassOutput(whole, require_logits(logits))

    def __call__(self, model: Any, inputs: Tensor) -> Tensor:
        """Logits [B, C] or [B, C, d1, ...] with C >= 2."""
        return self.output(model, inputs).class_logits


def require_logits(logits: Any) -> Tensor:
    """Require a tensor in place of a tuple, a ModelOutput and the like.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(logits).__name__}, not the logits: pass logits_fn=, such as "
            "lambda output: output.logits, to criterion.run, or output.logits (output[0]) to "
            "criterion(logits, target, inputs)"
        )
    return logits
