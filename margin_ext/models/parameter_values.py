"""Whether a module's parameters and buffers have values that autograd can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["require_values"]


def require_values(module: nn.Module) -> None:
    """Look at the module's own parameters and buffers, not at those of modules inside.

    Raises:
        ValueError: One has no values yet, or is an inference tensor.
    """
    parameters = (("parameter", *one) for one in module.named_parameters(recurse=False))
    buffers = (("buffer", *one) for one in module.named_buffers(recurse=False))
    for kind, name, tensor in (*parameters, *buffers):
        what = f"the {kind} {name} of {type(module).__name__}"
        if is_lazy(tensor):
            raise ValueError(f"{what} has no values yet: run the model once on a batch")
        if tensor.is_meta:
            raise ValueError(f"{what} is on the meta device and has no values: load a checkpoint")
        if tensor.is_inference():
            raise ValueError(
                f"{what} is an inference tensor, which autograd cannot use: make the model outside "
                "of inference_mode"
            )
