"""Layers that do what their class says: no hooks, no patched forward, eval mode."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["why_not_plain"]


def why_not_plain(layer: nn.Module) -> str | None:
    """What may change a layer's output apart from its class and parameters; None: nothing."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "forward hooks for all modules are registered"
    if "forward" in vars(layer):
        return "its forward is patched"
    random_or_coupled = isinstance(
        layer, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    )
    if random_or_coupled and layer.training:
        return "it is in training mode"
    return None
