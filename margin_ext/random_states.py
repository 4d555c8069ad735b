"""The generators of random numbers that a program draws from, and their states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from margin_ext.modules_behind import objects_behind

__all__ = [
    "RandomSource",
    "device_source",
    "global_sources",
    "keep_random_states",
    "kept_generators",
    "own_sources",
    "same_state",
]

_DEEPEST = 6


@dataclass(frozen=True)
class RandomSource:
    """A generator: how to read its state, write one, and make it draw other numbers."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]
    seed: Callable[[int], Any]


def global_sources() -> tuple[RandomSource, RandomSource, RandomSource]:
    """The generators of torch on the CPU, of Python and of numpy.

    Example:
        >>> source = global_sources()[1]
        >>> state = source.read()
        >>> drawn = random.random()
        >>> source.write(state)
        >>> drawn == random.random()
        True
    """
    return _GLOBAL


def device_source(device: torch.device) -> RandomSource:
    """The generator of a device other than the CPU."""
    module = torch.get_device_module(device)

    def seed(value: int) -> None:
        with module.device(device):
            module.manual_seed(value)

    return RandomSource(
        lambda: module.get_rng_state(device), lambda s: module.set_rng_state(s, device), seed
    )


def own_sources(modules: Sequence[nn.Module]) -> list[RandomSource]:
    """The generators that layers hold, and those that their forward functions name."""
    held: list[Any] = []
    for module in modules:
        if not isinstance(module, torch.jit.ScriptModule):  # they have no others than torch's
            held += [*vars(module).values(), type(module).forward]
    found = objects_behind(held, (nn.Module, Tensor, *_KINDS))
    return [_source(generator) for generator in found if isinstance(generator, _KINDS)]


def same_state(one: Any, other: Any) -> bool:
    """Whether two states that a source has read are alike."""
    if isinstance(one, Tensor):
        return np.array_equal(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Mapping):
        return all(same_state(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and (
            one == other if _is_plain(one) else all(map(same_state, one, other))
        )
    return bool(one == other)


def _is_plain(state: tuple[Any, ...]) -> bool:
    return not any(isinstance(part, (np.ndarray, Tensor)) for part in state)


def keep_random_states() -> Callable[[], None]:
    """Remember the global states of Python, numpy and torch; the result restores them."""
    states = [(source.write, source.read()) for source in _GLOBAL]
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        for write, state in states:
            write(state)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)

    return restore


@contextmanager
def kept_generators(data: Any) -> Iterator[None]:
    """Restore the generators that a loader, its samplers and its data set draw from.

    A generator that two loaders share, for training and for measuring, goes on as if nothing had
    been measured.
    """
    sources = [_source(generator) for generator in _generators(data, _DEEPEST, {})]
    states = [source.read() for source in sources]
    try:
        yield
    finally:
        for source, state in zip(sources, states, strict=True):
            source.write(state)


def _source(generator: Any) -> RandomSource:
    if isinstance(generator, torch.Generator):
        return RandomSource(generator.get_state, generator.set_state, generator.manual_seed)
    if isinstance(generator, random.Random):
        return RandomSource(generator.getstate, generator.setstate, generator.seed)
    if isinstance(generator, np.random.RandomState):
        return RandomSource(generator.get_state, generator.set_state, generator.seed)
    bits = generator.bit_generator

    def write(state: Any) -> None:
        bits.state = state

    return RandomSource(lambda: bits.state, write, lambda value: write(type(bits)(value).state))


_KINDS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)

_GLOBAL = (
    RandomSource(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
    RandomSource(random.getstate, random.setstate, random.seed),
    RandomSource(np.random.get_state, np.random.set_state, np.random.seed),
)


def _generators(thing: Any, depth: int, seen: dict[int, Any]) -> Iterator[Any]:
    if id(thing) in seen or depth < 0:
        return
    seen[id(thing)] = thing
    if isinstance(thing, _KINDS):
        yield thing
    elif isinstance(thing, (list, tuple)) and len(thing) <= 100:  # longer ones hold samples
        for part in thing:
            yield from _generators(part, depth - 1, seen)
    elif isinstance(thing, (DataLoader, Dataset, Sampler)) or hasattr(thing, "__getitem__"):
        held = thing if isinstance(thing, Mapping) else getattr(thing, "__dict__", {})
        for part in list(held.values())[:100]:
            yield from _generators(part, depth - 1, seen)
    elif hasattr(thing, "__iter__") or hasattr(thing, "transform") or callable(thing):
        for part in list(getattr(thing, "__dict__", {}).values())[:100]:
            yield from _generators(part, depth - 1, seen)
