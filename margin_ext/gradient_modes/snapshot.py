"""Everything that a pass depends on, so that one made later is made alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from margin_ext.gradient_modes.layer_state import uses_batch_statistics

__all__ = ["Snapshot"]


class Snapshot:
    """The layers' modes, the autocast settings and the versions of all tensors of a model."""

    def __init__(self, model: nn.Module, inputs: Tensor, batchnorm: str) -> None:
        """Take everything as it is now.

        Args:
            model: The module that is run.
            inputs: What it is run on.
            batchnorm: Under "batch", BatchNorm in training does not read its buffers (nor does
                InstanceNorm under either), and every other pass may move them.
        """
        self._model = model
        modules = list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        tensors = [inputs]
        for module in modules:
            tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
            moves = isinstance(module, _InstanceNorm) and module.training
            if isinstance(module, _BatchNorm) and uses_batch_statistics(module):
                moves = batchnorm == "batch"
            if not moves:
                tensors += [tensor for tensor in module._buffers.values() if tensor is not None]
        self._versions = [
            (tensor, tensor._version) for tensor in tensors if not tensor.is_inference()
        ]
        self._memory = [(p, _address(p)) for p in model.parameters()]
        self._autocast = [
            (
                device,
                torch.get_autocast_dtype(device),
                torch.is_autocast_enabled(device),
                torch.is_autocast_cache_enabled(),
            )
            for device in {inputs.device.type, "cpu"}
            if torch.amp.is_autocast_available(device)
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run the model as it was run then.

        Raises:
            RuntimeError: A parameter, a buffer or the inputs have changed since.
        """
        self._require_same_parameters()
        for tensor, version in self._versions:
            if tensor._version != version:
                raise RuntimeError(
                    f"{self._name(tensor)} was changed in place between run() and backward(), "
                    "where finite differences run the model once more (version "
                    f"{tensor._version}, expected {version}). Call backward() before the change, "
                    "or make all passes in run(): FiniteDifference(deferred=False)"
                )
        changed = [
            (module, module.training) for module, mode in self._modes if module.training != mode
        ]
        for module, mode in changed:
            module.training = not mode
        try:
            with ExitStack() as contexts:
                for device, dtype, enabled, cached in self._autocast:
                    contexts.enter_context(torch.autocast(device, dtype, enabled, cached))
                yield
        finally:
            for module, mode in changed:
                module.training = mode
            # What the pass itself has moved is no change by others.
            self._versions = [(tensor, tensor._version) for tensor, _ in self._versions]

    def _require_same_parameters(self) -> None:
        """New tensors in place of the old, or new memory in them, leave no mark in versions.

        A hook that came since would see the later passes' gradients by themselves.
        """
        parameters = list(self._model.parameters())
        same = len(parameters) == len(self._memory) and all(
            now is then and _address(now) == address
            for now, (then, address) in zip(parameters, self._memory, strict=True)
        )
        if not same or any(parameter._backward_hooks for parameter in parameters):
            raise RuntimeError(
                "the model's parameters were replaced, or got hooks, between run() and backward(), "
                "where finite differences run the model once more. Call backward() before that, "
                "or make all passes in run(): FiniteDifference(deferred=False)"
            )

    def _name(self, tensor: Tensor) -> str:
        named = chain(self._model.named_parameters(), self._model.named_buffers())
        return next((name for name, other in named if other is tensor), "inputs")


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor without memory, as of a fake mode
        return 0
