"""How a user's model becomes a function from inputs to logits."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from margin_ext.models.evaluation_mode import Model

__all__ = ["logits_function"]


def logits_function(
    model: Callable[..., Any],
    call: Callable[[Any, Tensor], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
) -> Model:
    """The function to measure.

    Args:
        model: A module, or any function.
        call: How to call it, where it is not ``model(inputs)``, such as
            ``lambda model, inputs: model(pixel_values=inputs)``.
        logits_fn: Takes the logits from what the model returns, such as
            ``lambda output: output.logits``.

    Returns:
        The module itself where nothing else is asked for, so that what reasons about layers can
        see them.

    Example:
        >>> import torch
        >>> model = logits_function(nn.Linear(2, 3), logits_fn=lambda output: 2 * output)
        >>> model(torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """
    for name, function in (("model", model), ("call", call), ("logits_fn", logits_fn)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    if call is None and logits_fn is None:
        return _module_of_forward(model)

    def logits(inputs: Tensor) -> Any:
        output = model(inputs) if call is None else call(model, inputs)
        return output if logits_fn is None else logits_fn(output)

    return logits


def _module_of_forward(model: Callable[..., Any]) -> Model:
    """The module whose ``forward`` or ``__call__`` the model is; otherwise the model."""
    if isinstance(model, types.MethodType) and isinstance(model.__self__, nn.Module):
        module = model.__self__
        hooked = module._forward_hooks or module._forward_pre_hooks
        # Without hooks, calling forward is calling the module.
        if model.__func__ is type(module).__call__ or (
            model.__func__ is type(module).forward and not hooked
        ):
            return module
    return model
