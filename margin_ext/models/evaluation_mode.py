"""The state in which a model is measured, and its restoration."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from margin_ext.models.parameter_values import require_values
from margin_ext.modules_behind import modules_behind
from margin_ext.random_states import keep_random_states

__all__ = ["Model", "evaluation_mode", "model_device", "model_dtype"]

Model = Callable[[Tensor], Tensor]
_Undo = Callable[[], Any]


def model_device(model: Model) -> torch.device | None:
    """Device of the first parameter or buffer of the model; None where it has none."""
    for module in modules_behind(model):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return None


def model_dtype(model: Model) -> torch.dtype | None:
    """The floating type of all parameters; None where there are none, or several types."""
    parameters = (p for module in modules_behind(model) for p in module.parameters())
    types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 else None


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Put a model into eval mode with frozen parameters; restore everything on the way out.

    The model is a module, or any function: the modules that it runs are found. Restored, also
    after an exception: every module's training flag and buffers, every parameter's requires_grad,
    and the random states of Python, numpy and torch, so that a run that is measured in between
    goes on as one that is not. Several threads may measure one model: the first one changes it,
    and the last one restores it.

    Inside, gradients are enabled whatever the caller's mode, autocast of the caller is off,
    compiled parts run eagerly (their graphs allow one backward pass only), and a
    DistributedDataParallel model runs its module, so that one rank can measure while the others go
    on. Frozen parameters save memory: the graph keeps only what input gradients need.

    Raises:
        ValueError: Parameters have no values, or are inference tensors, which autograd cannot use.
    """
    found = {id(m): m for outer in modules_behind(model) for m in outer.modules()}
    modules = list(found.values())
    for module in modules:
        require_values(module)
    kinds = {"cpu", *(t.device.type for m in modules for t in m.parameters(recurse=False))}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for kind in kinds & {"cpu", "cuda", "xpu", "mps"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for key, change in _changes(modules):
            stack.enter_context(_SHARED.changed(key, change))
        yield


def _changes(modules: list[nn.Module]) -> Iterator[tuple[Any, Callable[[], _Undo]]]:
    """What is to be changed, by a key that tells changes apart, each with how to undo it."""
    yield "random states", keep_random_states
    if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
        yield "eager", _run_eagerly
    for module in modules:
        if type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval:
            yield ("own eval", id(module)), partial(_call_own_eval, module)
    for module in modules:
        yield ("training", id(module)), partial(_set_eval, module)
        yield ("buffers", id(module)), partial(_keep_buffers, module)
        if isinstance(module, DistributedDataParallel):
            yield ("forward", id(module)), partial(_bypass, module)
        for parameter in module.parameters(recurse=False):
            yield ("frozen", id(parameter)), partial(_freeze, parameter)


def _set_eval(module: nn.Module) -> _Undo:
    flag = module.training
    module.training = False
    return lambda: setattr(module, "training", flag)


def _call_own_eval(module: nn.Module) -> _Undo:
    """For modules that do more than setting flags, such as merging weights."""
    if not module.training:
        return lambda: None
    flags = [(inner, inner.training) for inner in module.modules()]
    kept = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    module.eval()

    def undo() -> None:
        module.train()
        for inner, flag in flags:
            inner.training = flag
        for parameter, values in kept:
            # What was merged and taken apart again differs by rounding.
            if not torch.equal(parameter, values):
                with torch.no_grad():
                    parameter.copy_(values)

    return undo


def _keep_buffers(module: nn.Module) -> _Undo:
    kept = {
        name: (buffer, buffer.detach().clone())
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    }

    def undo() -> None:
        for name, (buffer, values) in kept.items():
            # Batch norm moves its statistics without a change of the buffers' versions.
            if not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)
            if name in module._buffers:
                module._buffers[name] = buffer

    return undo


def _freeze(parameter: nn.Parameter) -> _Undo:
    trained = parameter.requires_grad
    parameter.requires_grad_(False)
    return lambda: parameter.requires_grad_(trained)


def _bypass(module: DistributedDataParallel) -> _Undo:
    # Through the dictionary: an attribute that is a module would be registered as one.
    module.__dict__["forward"] = module.module
    return lambda: module.__dict__.pop("forward", None)


def _run_eagerly() -> _Undo:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


class _SharedChanges:
    """Changes that several threads want at once: the first one makes them, the last one undoes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[Any, int] = {}
        self._undo: dict[Any, _Undo] = {}

    @contextmanager
    def changed(self, key: Any, change: Callable[[], _Undo]) -> Iterator[None]:
        with self._lock:
            if key not in self._users:
                self._undo[key] = change()
                self._users[key] = 0
            self._users[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._undo.pop(key)()


_SHARED = _SharedChanges()
