"""Whether a module's parameters have values that autograd can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["require_values"]


def require_values(module: nn.Module) -> None:
    """Look at the module's own parameters, not at those of modules inside.

    Raises:
        ValueError: A parameter has no values yet, or is an inference tensor.
    """
    for name, parameter in module.named_parameters(recurse=False):
        what = f"the parameter {name} of {type(module).__name__}"
        if is_lazy(parameter):
            raise ValueError(f"{what} has no values yet: run the model once on a batch")
        if parameter.is_meta:
            raise ValueError(f"{what} is on the meta device and has no values: load a checkpoint")
        if parameter.is_inference():
            raise ValueError(
                f"{what} is an inference tensor, which autograd cannot use: make the model outside "
                "of inference_mode"
            )
