"""DistributedDataParallel and fully_shard in a step that takes an input gradient on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from margin_ext.modules_behind import modules_behind

__all__ = [
    "expects_backward",
    "finds_unused_parameters",
    "is_sharded",
    "refuse_fsdp1",
    "refuse_fsdp1_behind",
    "refuse_static_graph",
    "refuse_static_graph_behind",
    "shard_groups",
    "sharding_suspended",
    "without_ddp",
]

_STATIC_GRAPH: Final = (
    "DistributedDataParallel(static_graph=True) does not reduce gradients over the ranks when a "
    "gradient is taken through its output before backward(), as margins and attacks take one; "
    "every rank would train alone, without an error. Wrap the model without static_graph=True "
    "(find_unused_parameters=True is fine)"
)

_FSDP1: Final = (
    "FullyShardedDataParallel (FSDP1) frees and reduces parameters in its first backward, which "
    "for a first-order or secant margin is that of the input gradient: gradients would be wrong or "
    'missing. Shard the model by fully_shard (FSDP2), or use margin="logit_gap"'
)

# How many nodes are searched for DDP's: it is created at the model's output, so only the user's
# own operations on the logits come before it.
_NODES_SEARCHED: Final = 32


def _is_distributed() -> bool:
    """Whether a process group exists: without one, no model is wrapped or sharded."""
    # Builds of torch without distributed support have is_available alone.
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _modules(model: Any) -> Iterator[nn.Module]:
    """All modules in a module, or of those that a function runs; none without a process group."""
    if _is_distributed():
        for outer in [model] if isinstance(model, nn.Module) else modules_behind(model):
            yield from outer.modules()


def _is_ddp(module: object) -> bool:
    return _is_distributed() and isinstance(module, nn.parallel.DistributedDataParallel)


def without_ddp(model: Any) -> Any:
    """The module inside DistributedDataParallel, for passes after the first one.

    The wrapper prepares its reducer and broadcasts buffers at every call; once per step is enough.
    All passes add to the gradients of the same parameters, whose hooks fire once per backward.
    """
    return model.module if _is_ddp(model) else model


def refuse_static_graph(model: object) -> None:
    """Raise for DistributedDataParallel(static_graph=True).

    With a static graph, the first backward through the output triggers the all-reduce, once. Here
    that backward takes the input gradient, so the gradients of the loss would never be reduced:
    every rank would keep its own, without an error.
    """
    if any(wrapper.static_graph for wrapper in _ddp_wrappers(model)):
        raise RuntimeError(_STATIC_GRAPH)


def refuse_fsdp1(model: object) -> None:
    """Raise where FullyShardedDataParallel wraps the model or a part of it."""
    for module in _modules(model):
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise RuntimeError(_FSDP1)


def refuse_fsdp1_behind(logits: Tensor) -> None:
    """The same where only the logits are known: FSDP1 leaves hooks on the tensors it returns."""
    for hook in (logits._backward_hooks or {}).values():
        function = getattr(hook, "func", hook)
        if str(getattr(function, "__module__", "")).startswith("torch.distributed.fsdp"):
            raise RuntimeError(_FSDP1)


def finds_unused_parameters(model: object) -> bool:
    """Whether the model contains DistributedDataParallel(find_unused_parameters=True)."""
    return any(wrapper.find_unused_parameters for wrapper in _ddp_wrappers(model))


def expects_backward(modules: Sequence[nn.Module]) -> bool:
    """Whether any module is a wrapper that expects a backward after each pass with a graph."""
    return _is_distributed() and any(
        _is_ddp(module) or hasattr(module, "_get_fsdp_state") for module in modules
    )


def _ddp_wrappers(model: object) -> list[Any]:
    return [module for module in _modules(model) if _is_ddp(module)]


def refuse_static_graph_behind(logits: Tensor) -> None:
    """The same where only the logits are known: DDP leaves a node in their graph."""
    nodes, seen = [logits.grad_fn], 0
    while nodes and seen < _NODES_SEARCHED:
        node = nodes.pop(0)
        seen += 1
        if node is None:
            continue
        wrapper = getattr(node, "ddp_weakref", None)
        found = wrapper() if callable(wrapper) else None
        if found is not None and found.static_graph:
            raise RuntimeError(_STATIC_GRAPH)
        nodes.extend(following for following, _ in node.next_functions)


def is_sharded(model: object) -> bool:
    """Whether fully_shard has split the model's parameters over the ranks."""
    return next(shard_groups(model), None) is not None


@contextmanager
def sharding_suspended(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take an input gradient without letting fully_shard free parameters or reduce gradients.

    Modules are all those that the pass has run, inner ones included.

    The backward of the loss differentiates the input gradient, so it still needs the whole
    parameters. Otherwise fully_shard would free them after the input gradient, or reduce their
    gradients too early and lose them.
    """
    groups = [g for m in modules for g in _groups(m)] if _is_distributed() else []
    before = [(g.reshard_after_backward, g.reduce_grads, g.all_reduce_grads) for g in groups]
    for group in groups:
        group.reshard_after_backward = group.reduce_grads = group.all_reduce_grads = False
    try:
        yield
    finally:
        for group, values in zip(groups, before, strict=True):
            group.reshard_after_backward, group.reduce_grads, group.all_reduce_grads = values


def shard_groups(model: object) -> Iterator[Any]:
    """What torch keeps of each module that fully_shard has split, in a module or a function."""
    for module in _modules(model):
        yield from _groups(module)


def _groups(module: nn.Module) -> list[Any]:
    # Looked up by name, because importing the class would load all of fully_shard.
    state = getattr(module, "_get_fsdp_state", None)
    if state is None:
        return []
    found = state()
    groups = getattr(found, "_fsdp_param_groups", None)
    if groups is None:  # torch before 2.13 has one group per module
        single = found._fsdp_param_group
        groups = [] if single is None else [single]
    return list(groups)
