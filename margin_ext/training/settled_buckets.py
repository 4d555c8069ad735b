"""Sums over processes that round the same way from the first step on."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from margin_ext.random_states import keep_random_states

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["settle_buckets"]


def settle_buckets(model: nn.Module, inputs: Tensor) -> None:
    """Let DistributedDataParallel choose its buckets before the first step.

    It sorts gradients into other buckets after its first backward pass. How the gradients of three
    or more processes round when they are added depends on the buckets, so a continued training
    would differ from one that was not stopped. All processes have to call it; weights, buffers
    and random states are left as they were.

    The pass is made in evaluation mode. A model that leaves parameters out there (and uses them in
    training) is left alone: the buckets would wait for their gradients.

    Args:
        model: In DistributedDataParallel.
        inputs: A sample [1, ...].
    """
    restore = keep_random_states()
    flags = [(module, module.training) for module in model.modules()]
    # Its graphs are compiled for the training, at its first step.
    stance = torch.compiler.set_stance("force_eager")
    try:
        model.eval()
        if _all_parameters_used(model, inputs):
            model(inputs).sum().backward()
    finally:
        stance.__exit__(None, None, None)
        for module, training in flags:
            module.training = training
        for parameter in model.parameters():
            parameter.grad = None
        restore()


def _all_parameters_used(model: nn.Module, inputs: Tensor) -> bool:
    inner = cast("nn.Module", model.module)
    trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(inner(inputs).sum(), trained, allow_unused=True)
    return all(gradient is not None for gradient in found)
