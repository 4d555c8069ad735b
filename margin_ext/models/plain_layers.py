"""A model as a list of layers that do what their classes say, for what reasons about layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parallel import DataParallel, DistributedDataParallel

from margin_ext.models.in_parts import InParts

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["plain_layers"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def plain_layers(model: Model) -> list[nn.Module]:
    """The layers of a Sequential (nested ones too) in the order in which they run.

    Wrappers that compute the same (DistributedDataParallel, DataParallel, compiled modules) are
    looked through.

    Raises:
        TypeError: The model is no module, or a layer does more than its class says: it has hooks,
            its forward is replaced, or its weights are of a special kind.

    Example:
        >>> plain_layers(nn.Sequential(nn.Sequential(nn.Flatten(), nn.Tanh()), nn.ReLU()))
        [Flatten(start_dim=1, end_dim=-1), Tanh(), ReLU()]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layers can be walked through in a module, got {_kind(model)}")
    hooks = [h for name in _GLOBAL_HOOKS for h in getattr(torch_module, name, {}).values()]
    if not all(getattr(hook, "changes_nothing", False) for hook in hooks):
        raise TypeError("hooks on all modules are registered: layers may do anything")
    return _walk(model)


def _walk(model: nn.Module) -> list[nn.Module]:
    _require_plain(model)
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        return _walk(model.module)
    if isinstance(model, InParts) and isinstance(model.model, nn.Module):
        return _walk(model.model)
    if "_orig_mod" in model._modules:  # what torch.compile returns
        return _walk(model._modules["_orig_mod"])  # type: ignore[arg-type]
    if type(model) is nn.Sequential:
        return [layer for child in model for layer in _walk(child)]
    return [model]


def _require_plain(layer: nn.Module) -> None:
    kind = _kind(layer)
    if any(getattr(layer, name, None) for name in _HOOKS):
        raise TypeError(f"a {kind} has hooks, which may change what it computes")
    replaced = "forward" in vars(layer) and not isinstance(layer, DistributedDataParallel)
    # A compiled module runs its own forward, set on the instance.
    if (replaced and "_orig_mod" not in layer._modules) or not _own_forward(type(layer)):
        raise TypeError(f"the forward of a {kind} is replaced")
    special = [name for name, tensor in _tensors(layer) if not _is_plain(tensor)]
    if special:
        raise TypeError(f"the {special[0]} of a {kind} is a {_kind(getattr(layer, special[0]))}")


def _own_forward(kind: type[nn.Module]) -> bool:
    """Whether the class's forward stands where torch's classes stand; classes of others pass."""
    if not kind.__module__.startswith("torch.nn.modules"):
        return True
    code = getattr(kind.forward, "__code__", None)
    folder = str(sys.modules["torch.nn.modules"].__file__).rpartition("__init__")[0]
    return code is not None and code.co_filename.startswith(folder)


def _tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    return list(own)


def _is_plain(tensor: Any) -> bool:
    return type(tensor) in (nn.Parameter, Tensor, torch.nn.Buffer)


def _kind(thing: object) -> str:
    return type(thing).__name__
