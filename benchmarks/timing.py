"""Timing contenders side by side: interleaved rounds on CPU, graph replay and events on CUDA."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.samples import Measured


@dataclass(frozen=True)
class Contender:
    """One way to do a job.

    Attributes:
        call: What is timed; its argument is what ``before`` returned.
        before: Makes ready what ``call`` uses up, untimed; its argument is one set of inputs. None
            where ``call`` takes the inputs themselves, any number of times.
    """

    call: Callable[[Any], object]
    before: Callable[[Any], Any] | None = None

    def ready(self, inputs: Any) -> Any:
        return inputs if self.before is None else self.before(inputs)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        least_rounds: Rounds that are made in any case.
        most_rounds: Rounds after which it is enough.
        seconds: No further round is begun after this time.
        block_seconds: Calls are timed in blocks of at least this length, or singly if longer.
    """

    least_rounds: int = 7
    most_rounds: int = 41
    seconds: float = 1.5
    block_seconds: float = 1e-3


_LONG_SECONDS = (
    0.05  # such a call is timed singly, and repeating it to find that out costs too much
)

QUICK = Effort(least_rounds=2, most_rounds=2, seconds=0.0, block_seconds=0.0)


def time_on_cpu(
    contenders: Mapping[str, Contender], inputs: Any, effort: Effort
) -> dict[str, Measured]:
    """Time of a call of each contender, in rounds in which each has its turn.

    The order rotates from round to round, so that none always follows the same one. All use the
    same inputs: what fits the caches stays there, as a gradient that was just computed does. The
    first call of a turn is not timed, because it fetches what others took from the caches, which
    would count more where a turn has fewer calls.
    """
    calls = {}
    for name, contender in contenders.items():
        once = _block(contender, inputs, 1)  # the first call allocates, compiles, reads tables
        if once < _LONG_SECONDS:
            once = min(_block(contender, inputs, 1) for _ in range(3))
        calls[name] = max(1, min(10_000, int(effort.block_seconds / max(once, 1e-7))))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + effort.seconds
    with collector_off():
        for order in rotations(list(contenders), effort):
            if len(found[order[0]]) >= effort.least_rounds and time.perf_counter() > end:
                break
            for name in order:
                _block(contenders[name], inputs, 1)
                found[name].append(_block(contenders[name], inputs, calls[name]))
    return {name: Measured(rounds={"wall": values}) for name, values in found.items()}


def rotations(names: Sequence[str], effort: Effort) -> Iterator[list[str]]:
    for turn in range(effort.most_rounds):
        first = turn % len(names)
        yield [*names[first:], *names[:first]]


def _block(contender: Contender, inputs: Any, calls: int) -> float:
    """Seconds of one call, as the mean over a block of them."""
    call = contender.call
    if contender.before is None:
        start = time.perf_counter()
        for _ in range(calls):
            call(inputs)
        return (time.perf_counter() - start) / calls
    total = 0.0
    for _ in range(calls):
        state = contender.before(inputs)
        start = time.perf_counter()
        call(state)
        total += time.perf_counter() - start
    return total / calls


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside a timed stretch; one before it."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
