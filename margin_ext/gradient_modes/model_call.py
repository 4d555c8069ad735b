"""How a user's model becomes a function from inputs to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["joined_call"]


def joined_call(
    call: Callable[[Any, Tensor], Any] | None, logits_fn: Callable[[Any], Tensor] | None
) -> Callable[[Any, Tensor], Tensor]:
    """Maps the model and inputs to logits; both arguments are those of ``criterion.run``."""

    def logits(model: Any, inputs: Tensor) -> Tensor:
        output = model(inputs) if call is None else call(model, inputs)
        if logits_fn is not None:
            output = logits_fn(output)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}, not the logits: pass logits_fn=, "
                "such as lambda output: output.logits"
            )
        return output

    return logits
