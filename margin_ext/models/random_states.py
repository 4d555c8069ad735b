"""Random states that measuring leaves as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["keep_random_states", "kept_generators"]

_DEEPEST = 6


def keep_random_states() -> Callable[[], None]:
    """Remember the global states of Python, numpy and torch; the result restores them."""
    python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)

    return restore


@contextmanager
def kept_generators(data: Any) -> Iterator[None]:
    """Restore the generators that a loader, its samplers and its data set draw from.

    A generator that two loaders share, for training and for measuring, goes on as if nothing had
    been measured.
    """
    restore = [_keep(generator) for generator in _generators(data, _DEEPEST, {})]
    try:
        yield
    finally:
        for undo in restore:
            undo()


def _keep(generator: Any) -> Callable[[], Any]:
    if isinstance(generator, torch.Generator):
        of_torch = generator.get_state()
        return lambda: generator.set_state(of_torch)
    if isinstance(generator, random.Random):
        python = generator.getstate()
        return lambda: generator.setstate(python)
    if isinstance(generator, np.random.RandomState):
        legacy = generator.get_state()
        return lambda: generator.set_state(legacy)
    bits = generator.bit_generator
    state = bits.state
    return lambda: setattr(bits, "state", state)


_KINDS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)


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
