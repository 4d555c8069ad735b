"""Tensors that layers and hooks store in a pass, such as features and auxiliary losses.

The user expects those of the step's first pass, over the whole batch. Further passes run the same
layers and hooks, so the stored tensors are put back afterwards. Otherwise a stored feature would
belong to moved inputs, and a list of auxiliary losses would hold some losses twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import is_
from types import CellType
from typing import Any, Final

from torch import Tensor, nn

__all__ = ["nothing_kept", "side_channels_kept"]

# The attributes that every module has: parameters, buffers, hooks and flags.
_OF_MODULES: Final = frozenset(vars(nn.Module()))


@contextmanager
def side_channels_kept(model: object) -> Iterator[None]:
    """Run the model, and then put back the tensors that its layers and hooks have stored.

    Stored tensors are found in attributes of layers, and in the lists, dictionaries and variables
    that layers, their forward functions and their hooks can reach through attributes, closures and
    global variables. Other values stay, and so do tensors without a graph that were appended to a
    list: code that counts or records passes sees all of them. Buffers and tensors that were changed
    in place are not put back.
    """
    stored = _Stored(model)
    try:
        yield
    finally:
        for store, before in stored.containers:
            if isinstance(store, list):
                _put_back_list(store, before)
            else:
                _put_back_names(store, before)
        for cell, before in stored.cells:
            if _has_moved(before, cell.cell_contents):
                cell.cell_contents = before


@contextmanager
def nothing_kept(model: object) -> Iterator[None]:
    """Run the model outside of a step, and then undo everything that it has stored."""
    stored = _Stored(model)
    try:
        yield
    finally:
        for store, before in stored.containers:
            store.clear()
            if isinstance(store, list):
                store.extend(before)
            else:
                store.update(before)
        for cell, before in stored.cells:
            cell.cell_contents = before


class _Stored:
    """What a pass may write to, each with its contents at present."""

    def __init__(self, model: object) -> None:
        containers, cells = _stores(model)
        self.containers = [(container, container.copy()) for container in containers]
        self.cells = [(cell, cell.cell_contents) for cell in cells]


def _put_back_list(store: list[Any], before: list[Any]) -> None:
    if len(store) == len(before) and all(map(is_, store, before)):
        return
    kept = {id(item) for item in before}
    now = {id(item) for item in store}
    new = [item for item in store if id(item) not in kept]
    lost = [item for item in before if id(item) not in now]
    if any(tensor.requires_grad for item in (*new, *lost) for tensor in _tensors(item)):
        store[:] = before


def _put_back_names(store: dict[Any, Any], before: dict[Any, Any]) -> None:
    if len(store) == len(before) and all(map(is_, store.values(), before.values())):
        return
    for name, value in list(store.items()):
        if name not in before:
            if any(tensor.requires_grad for tensor in _tensors(value)):
                del store[name]
        elif _has_moved(before[name], value):
            store[name] = before[name]
    for name in before.keys() - store.keys():
        if _tensors(before[name]):
            store[name] = before[name]


def _has_moved(before: Any, now: Any) -> bool:
    """Whether a tensor, or a tuple or list of tensors, was replaced."""
    return before is not now and bool(_tensors(before) or _tensors(now))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [item for item in value if isinstance(item, Tensor)]


def _stores(model: object) -> tuple[list[Any], list[CellType]]:
    """The containers and closure variables that a pass may write to."""
    found: dict[int, Any] = {}
    cells: dict[int, CellType] = {}
    functions: dict[int, Any] = {}
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if not _is_of_torch(type(module)):
            own = vars(module)
            found[id(own)] = own
            for name in own.keys() - _OF_MODULES:
                _add_container(found, own[name])
            forward = type(module).forward
            functions[id(forward)] = forward
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            functions[id(hook)] = hook
    for function in functions.values():
        for thing in _reached(function):
            if isinstance(thing, CellType):
                cells[id(thing)] = thing
            else:
                _add_container(found, thing)
    return list(found.values()), list(cells.values())


def _add_container(found: dict[int, Any], thing: object) -> None:
    if not isinstance(thing, (dict, list)) or id(thing) in found:
        return
    found[id(thing)] = thing
    for inner in thing.values() if isinstance(thing, dict) else ():
        if isinstance(inner, (dict, list)):
            found.setdefault(id(inner), inner)


def _reached(function: Any) -> Iterator[object]:
    """The objects that a function can write to; none for torch's functions, which need no care."""
    if isinstance(function, partial):
        yield from function.args
        yield from function.keywords.values()
        function = function.func
    owner = getattr(function, "__self__", None)
    if not inspect.isroutine(function):  # an object that can be called
        owner, function = function, type(function).__call__
    if _is_of_torch(function) or (owner is not None and _is_of_torch(type(owner))):
        return
    if owner is not None and not isinstance(owner, nn.Module):
        own = getattr(owner, "__dict__", {})
        yield from (owner, own, *own.values())
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
            yield cell
    for name in code.co_names:
        yield function.__globals__.get(name)


def _is_of_torch(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("torch.")
