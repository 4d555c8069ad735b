"""State that layers change in every forward pass, and passes that leave it alone.

BatchNorm in training moves its running statistics, and makes the samples of a batch depend on each
other. InstanceNorm
may have running statistics too. Spectral normalisation in training moves its estimate of the
singular vectors, and with it the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ["state_kept", "training_batchnorms", "uses_batch_statistics"]


def training_batchnorms(model: object) -> list[_BatchNorm]:
    """The layers that normalise by the statistics of the batch at hand."""
    if not isinstance(model, nn.Module):
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and uses_batch_statistics(module)
    ]


def uses_batch_statistics(layer: _BatchNorm) -> bool:
    """Whether it normalises by the batch and does not read its buffers."""
    return layer.training or layer.running_mean is None


def _has_moving_spectrum(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()  # where torch's older interface keeps its state
    return isinstance(module, _SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)


@contextmanager
def state_kept(model: object, batchnorm: str) -> Iterator[None]:
    """Run the model without a change of its layers' state.

    Under batchnorm="running", layers that have running statistics also use them.
    """
    # Turning the tracking off gives the layer no statistics to update; writing old values back
    # would clash with autograd, which has saved the buffers.
    flag = "training" if batchnorm == "running" else "track_running_stats"
    changed: list[tuple[nn.Module, str, Any]] = [
        (layer, flag, False)
        for layer in training_batchnorms(model)
        if layer.running_mean is not None
    ]
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if module.training and _has_moving_spectrum(module):
            changed.append((module, "training", False))
        if module.training and isinstance(module, _InstanceNorm):
            # It hands over its statistics whatever the flag says, and does not read them.
            changed += [(module, name, None) for name in ("running_mean", "running_var")]
    kept = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), before in zip(changed, kept, strict=True):
            setattr(module, name, before)
