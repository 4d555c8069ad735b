"""The same random numbers in several passes, so that dropout draws the same masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from margin_ext.random_states import RandomSource, device_source, global_sources, same_state

__all__ = ["RandomState"]

_OTHER_NUMBERS = (
    "a further pass drew other random numbers than the first one, so that the difference of their "
    "gaps would be noise: another thread draws from the same generator at the same time (let it "
    "have a generator of its own), how many numbers the model draws depends on its inputs, or lazy "
    "layers drew their weights in the first pass (run the model once before the first step). "
    'Otherwise take gradient="double_backward" or "detached"'
)


class RandomState:
    """The state of all generators that a pass may draw from.

    They are those of torch on the CPU and on the devices of the pass, of Python's ``random``, of
    numpy, and the layers' own.
    """

    def __init__(
        self, inputs: Tensor, modules: Sequence[nn.Module], own: Sequence[RandomSource] = ()
    ) -> None:
        """Take the state as it is now, before the first pass."""
        devices = {inputs.device}
        for module in modules:
            devices.update(parameter.device for parameter in module.parameters(recurse=False))
        on_devices = [device_source(d) for d in devices if d.type not in ("cpu", "meta")]
        cpu, *others = global_sources()
        self._always = 1 + len(on_devices)
        self._sources: list[RandomSource] = [cpu, *on_devices, *others, *own]
        self._start = self._read()
        self._end: list[Any] | None = None

    def first_pass_ends(self) -> None:
        """Note where the first pass has left the generators; those that it did not use are let go.

        Torch's own are always kept.
        """
        end = self._read()
        kept = [
            index
            for index in range(len(end))
            if index < self._always or not same_state(self._start[index], end[index])
        ]
        self._sources = [self._sources[index] for index in kept]
        self._start = [self._start[index] for index in kept]
        self._end = [end[index] for index in kept]

    @contextmanager
    def replayed(self, *, alike: bool = False) -> Iterator[None]:
        """Go back to the state taken; afterwards the generators stand where they stood before.

        Args:
            alike: Require that as many numbers are drawn as in the first pass.

        Raises:
            RuntimeError: Other numbers were drawn.
        """
        now = self._read()
        self._write(self._start)
        try:
            yield
            if alike and self._end is not None:
                found = self._read()
                if not all(map(same_state, found, self._end)):
                    raise RuntimeError(_OTHER_NUMBERS)
        finally:
            self._write(now)

    @contextmanager
    def others(self, seed: int) -> Iterator[None]:
        """Draw other numbers; afterwards the generators stand where they stood before."""
        now = self._read()
        for source in self._sources:
            source.seed(seed)
        try:
            yield
        finally:
            self._write(now)

    def _read(self) -> list[Any]:
        return [source.read() for source in self._sources]

    def _write(self, states: Sequence[Any]) -> None:
        for source, state in zip(self._sources, states, strict=True):
            source.write(state)
