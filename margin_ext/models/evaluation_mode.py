"""The state in which a model is measured, and its restoration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Model", "evaluation_mode", "model_device"]

Model = Callable[[Tensor], Tensor]


def model_device(model: Model) -> torch.device | None:
    """Device of the model's first parameter or buffer; None where it has none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return None


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Put a model into eval mode with frozen parameters; restore everything on the way out.

    Restored, also after an exception: every submodule's training flag, every parameter's
    requires_grad, and the random state of the CPU and of the model's GPU, so that a run that is
    measured in between goes on as one that is not. Gradients are enabled inside, whatever the
    caller's mode. Frozen parameters save memory: the graph keeps only what input gradients need.
    """
    device = model_device(model)
    devices = [device] if device is not None and device.type == "cuda" else []
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    trainable = [parameter.requires_grad for parameter in parameters]
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        try:
            for module in modules:
                module.training = False
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, flag in zip(modules, training, strict=True):
                module.training = flag
            for parameter, flag in zip(parameters, trainable, strict=True):
                parameter.requires_grad_(flag)
