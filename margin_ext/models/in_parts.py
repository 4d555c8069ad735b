"""A model that never sees more than so many samples at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["InParts", "memory_limit"]


class InParts(nn.Module):
    """Runs a model on parts of a batch, forward and backward, and joins what comes out.

    Larger batches keep no activations: the backward pass runs each part forward again. Second
    derivatives are not supported.

    Example:
        >>> model = InParts(nn.Linear(2, 3), size=4)
        >>> x = torch.rand(10, 2, requires_grad=True)
        >>> torch.autograd.grad(model(x).sum(), x)[0].shape
        torch.Size([10, 2])
    """

    def __init__(self, model: Model, size: int, memory: int | None = None) -> None:
        super().__init__()
        # A module becomes part of this one, so that it is found.
        self.model = model
        self.size = size
        # Bytes that passes of this size may take, with all that the caller holds.
        self.memory = memory
        self.training = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [B, ...] to logits [B, C]."""
        if inputs.shape[0] <= self.size:
            return self.model(inputs)
        joined: Tensor = _Joined.apply(inputs, self.model, self.size)  # type: ignore[no-untyped-call]
        return joined


def memory_limit(model: Model) -> int | None:
    """Bytes that what is computed with the model may hold; None: no limit was set.

    Example:
        >>> memory_limit(InParts(nn.Linear(2, 3), size=4, memory=1000))
        1000
    """
    return model.memory if isinstance(model, InParts) else None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, model: Model, size: int) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.model, ctx.size = model, size
        return torch.cat([model(part) for part in inputs.split(size)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        grads = []
        for part, cotangent in zip(inputs.split(ctx.size), upstream.split(ctx.size), strict=True):
            x = part.detach().requires_grad_()
            with torch.enable_grad():
                logits = ctx.model(x)
            grads += torch.autograd.grad(logits, x, cotangent)
        return torch.cat(grads), None, None
