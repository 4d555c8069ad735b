"""State that layers change in every forward pass, and passes that leave it alone.

BatchNorm in training moves its running statistics, and makes the samples of a batch depend on each
other. InstanceNorm may have running statistics too. Spectral normalisation in training moves its
estimate of the singular vectors, and with it the weight. Layers of the user's own, and scripted or
exported ones, have their state in buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from margin_ext.modules_behind import modules_behind

__all__ = [
    "LayerState",
    "batchnorms_in_use",
    "buffer_of",
    "buffers_replaced",
    "copied_buffers",
    "inner_modules",
    "state_kept",
    "training_batchnorms",
    "uses_batch_statistics",
]

# A buffer: the module that has it, its name, and a tensor.
_Buffer = tuple[nn.Module, str, Tensor]


def inner_modules(model: Any) -> list[nn.Module]:
    """All modules in a module, or of those that a function runs."""
    outer = [model] if isinstance(model, nn.Module) else modules_behind(model)
    return [module for found in outer for module in found.modules()]


def training_batchnorms(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers that normalise by the statistics of the batch at hand."""
    return [module for module in modules if _is_batchnorm(module) and uses_batch_statistics(module)]


def batchnorms_in_use(modules: Iterable[nn.Module], batchnorm: str) -> list[nn.Module]:
    """Those of them that still do so in passes of which margins are taken."""
    found = training_batchnorms(modules)
    if batchnorm == "running":
        found = [layer for layer in found if getattr(layer, "running_mean", None) is None]
    return found


def _is_batchnorm(module: nn.Module) -> bool:
    """Whether it is one of torch's, TorchScript's versions included."""
    if isinstance(module, torch.jit.ScriptModule):
        return "BatchNorm" in getattr(module, "original_name", "")
    return isinstance(module, _BatchNorm)


def uses_batch_statistics(layer: nn.Module) -> bool:
    """Whether a BatchNorm normalises by the batch and does not read its buffers."""
    return layer.training or getattr(layer, "running_mean", None) is None


def _has_moving_spectrum(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()  # where torch's older interface keeps its state
    return isinstance(module, _SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)


@contextmanager
def state_kept(modules: Sequence[nn.Module], batchnorm: str) -> Iterator[None]:
    """Run a model without a change of the state of torch's layers.

    Under batchnorm="running", layers that have running statistics also use them.
    """
    # Turning the tracking off gives the layer no statistics to update; writing old values back
    # would clash with autograd, which has saved the buffers.
    flag = "training" if batchnorm == "running" else "track_running_stats"
    changed: list[tuple[nn.Module, str, Any]] = [
        (layer, flag, False)
        for layer in training_batchnorms(modules)
        # The flag of a scripted layer is a constant; its buffers are replaced.
        if layer.running_mean is not None
        and (flag == "training" or not isinstance(layer, torch.jit.ScriptModule))
    ]
    for module in modules:
        if module.training and _has_moving_spectrum(module):
            changed.append((module, "training", False))
        if module.training and isinstance(module, _InstanceNorm):
            # It hands over its statistics whatever the flag says, and does not read them.
            changed += [(module, name, None) for name in ("running_mean", "running_var")]
    with _attributes_set(changed):
        yield


@contextmanager
def _attributes_set(changed: Sequence[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    kept = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), before in zip(changed, kept, strict=True):
            setattr(module, name, before)


@contextmanager
def buffers_replaced(buffers: Sequence[_Buffer]) -> Iterator[None]:
    """Run a model on other tensors in place of some buffers, which it may then change."""
    kept = [(module, name, buffer_of(module, name)) for module, name, _ in buffers]
    for module, name, tensor in buffers:
        _put(module, name, tensor)
    try:
        yield
    finally:
        for module, name, before in kept:
            _put(module, name, before)


def buffer_of(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that a buffer is now."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, name)  # type: ignore[no-any-return]
    return module._buffers[name]


def _put(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, tensor)
    else:
        module._buffers[name] = tensor


def copied_buffers(modules: Iterable[nn.Module]) -> list[_Buffer]:
    """Copies of all buffers."""
    return [
        (module, name, tensor.detach().clone())
        for module in modules
        for name, tensor in module.named_buffers(recurse=False)
    ]


class LayerState:
    """How the passes of one step meet the layers' state: only the first one changes it."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batchnorm: str,
        moving: Iterable[tuple[nn.Module, str]] = (),
    ) -> None:
        """Take what the first pass will change.

        Args:
            modules: All modules of the model.
            batchnorm: As in :class:`margin_ext.AverageMarginLoss`.
            moving: The buffers, by module and name, that layers other than torch's change.
        """
        self._modules = modules
        self._batchnorm = batchnorm
        self._moving = [
            (module, name, tensor.detach().clone())
            for module, name in moving
            if (tensor := buffer_of(module, name)) is not None
        ]
        self._before: list[_Version] | None = None
        self._scratch: list[_Buffer] | None = None

    def again(self) -> Callable[[], AbstractContextManager[None]]:
        """For a part of a further pass that will be computed again."""
        return self.kept

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A pass beyond the first one, or a part of it that is computed again."""
        fresh = [(module, name, tensor.clone()) for module, name, tensor in self._moving]
        with buffers_replaced(fresh), state_kept(self._modules, self._batchnorm):
            yield

    def first_again(self) -> Callable[[], AbstractContextManager[None]]:
        """For a part of the first pass that will be computed again; called when the part begins."""
        if self._before is None:
            self._before = [
                _Version(module, name, tensor, tensor._version, copy)
                for module, name, copy in copied_buffers(self._modules)
                if (tensor := buffer_of(module, name)) is not None
            ]
        return self._first_kept

    @contextmanager
    def _first_kept(self) -> Iterator[None]:
        """Buffers that the first pass has changed are as they were, and its changes stay."""
        if self._scratch is None:
            versions = self._before or []
            changed = {id(v.module) for v in versions if v.changed or _keeps_statistics(v.module)}
            self._scratch = [
                (v.module, v.name, v.copy) for v in versions if id(v.module) in changed
            ]
            self._before = None
        spectra = [
            (module, "training", False)
            for module in self._modules
            if module.training and _has_moving_spectrum(module)
        ]
        still = {id(module) for module, _, _ in spectra}
        # Autograd may have saved those that the last part changed, and every part starts alike.
        fresh = [(m, name, t.clone()) for m, name, t in self._scratch if id(m) not in still]
        with _attributes_set(spectra), buffers_replaced(fresh):
            yield


@dataclass(frozen=True)
class _Version:
    """A buffer before a pass."""

    module: nn.Module
    name: str
    tensor: Tensor
    version: int
    copy: Tensor

    @property
    def changed(self) -> bool:
        now = buffer_of(self.module, self.name)
        return now is not self.tensor or self.tensor._version != self.version


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether its buffers may change without a mark in their versions."""
    return module.training and (_is_batchnorm(module) or isinstance(module, _InstanceNorm))
