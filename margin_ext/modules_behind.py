"""The modules, and other objects, that a function uses, found without running it."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["modules_behind", "objects_behind"]

# Their functions use no modules of the user, and have thousands of globals.
_LIBRARIES = ("torch", "numpy", "margin_ext", "builtins", "functools", "importlib", "typing")
# Things that are looked at, and the longest container that is: longer ones hold data.
_MOST = 20_000
_LARGEST = 1000
_PLAIN = (str, bytes, int, float, complex, type(None), type)


def modules_behind(function: Callable[..., Any]) -> list[nn.Module]:
    """Modules that a callable is, holds or names, nearest first and without repetition.

    Looked through are methods, partial functions, closures, default values, decorators, containers,
    objects' attributes, and the global names that a function's code uses.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> modules_behind(functools.partial(net.forward))
        [Linear(in_features=2, out_features=2, bias=True)]
    """
    found = objects_behind([function], (nn.Module,))
    inner = {id(m) for module in found for m in module.modules() if m is not module}
    return [module for module in found if id(module) not in inner]


def objects_behind(things: Iterable[Any], kinds: tuple[type, ...]) -> list[Any]:
    """Objects of some kinds among things and what they hold or name; not what these hold.

    Example:
        >>> objects_behind([lambda: nn.ReLU()], (types.ModuleType,))
        []
    """
    found: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    waiting = deque(things)
    while waiting:
        thing = waiting.popleft()
        if isinstance(thing, _PLAIN) or id(thing) in seen:
            continue
        # Kept, because the id of an object that is gone can come back.
        seen[id(thing)] = thing
        if isinstance(thing, kinds):
            found.setdefault(id(thing), thing)
        if isinstance(thing, nn.Module):
            # Modules that are not registered, such as those in a list.
            waiting.extend(v for m in thing.modules() for v in vars(m).values())
        elif not isinstance(thing, kinds) and len(seen) < _MOST:
            waiting.extend(_held_by(thing))
    return list(found.values())


def _held_by(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (types.MethodType, types.BuiltinMethodType)):
        yield thing.__self__
        yield getattr(thing, "__func__", None)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.FunctionType):
        yield from _held_by_function(thing)
    elif isinstance(thing, Mapping):
        yield from thing.values() if len(thing) <= _LARGEST else ()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing if len(thing) <= _LARGEST else ()
    elif isinstance(thing, (weakref.ref, weakref.WeakMethod)):
        yield thing()
    elif isinstance(thing, types.CellType):
        yield from _contents(thing)
    elif _top_package(type(thing)) not in _LIBRARIES or isinstance(thing, types.SimpleNamespace):
        yield from _attributes(thing)
        # An object that is called runs its class's code.
        yield from (vars(kind).get("__call__") for kind in type(thing).__mro__)
    # What torch.compile, functools.wraps and the like have made.
    for name in ("__wrapped__", "_torchdynamo_orig_callable", "_orig_mod"):
        yield getattr(thing, "__dict__", {}).get(name)


def _held_by_function(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__closure__ or ()
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    if _top_package(function) in _LIBRARIES:
        return
    names = set(_names(function.__code__))
    # In an order that does not change from one process to the next.
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, types.ModuleType):
            yield value
        elif value.__name__.partition(".")[0] not in _LIBRARIES:
            # Of a Python module only what the code names.
            yield from (vars(value)[inner] for inner in sorted(names & vars(value).keys()))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _contents(cell: types.CellType) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return


def _attributes(thing: Any) -> Iterator[Any]:
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(thing, name, None)


def _top_package(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]
