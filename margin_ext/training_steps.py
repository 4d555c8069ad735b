"""What a training step is: all calls up to an optimizer's step, or what the user says.

``every`` and ``warmup`` count steps. A step may have several calls: two for sharpness-aware
minimisation, as many as the line search takes for LBFGS, one a part for gradient accumulation. All
of them have to see the same loss, or the optimizer compares two functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import Any, Final

from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

__all__ = ["StepCounter", "check_step_options", "rise"]

_CODE_OF_OPTIMIZERS: Final = Optimizer.__init__.__code__.co_filename
_GOLDEN: Final = 0.6180339887498949


def check_step_options(every: int, warmup: int) -> None:
    """Require whole numbers, at least 1 and 0."""
    for name, value, least in (("every", every, 1), ("warmup", warmup, 0)):
        if not (isinstance(value, int) and value >= least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def rise(step: int, warmup: int) -> float:
    """The part of its final size that something has in a step, counted from 0.

    >>> [rise(step, warmup=1) for step in range(3)]
    [0.5, 1.0, 1.0]
    """
    return min((step + 1) / (warmup + 1), 1.0)


@dataclass
class _OptimizerSteps:
    """Steps of all of torch's optimizers in this process."""

    begun: int = 0
    ended: int = 0
    watching: bool = False

    def watch(self) -> None:
        """Count from now on."""
        if not self.watching:
            self.watching = True
            register_optimizer_step_pre_hook(self._begin)
            register_optimizer_step_post_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.begun += 1

    def _end(self, *_: Any) -> None:
        self.ended += 1

    def inside(self) -> bool:
        """Whether this is called by a closure that an optimizer calls."""
        if self.begun <= self.ended:
            return False
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_filename == _CODE_OF_OPTIMIZERS:
                return True
            frame = frame.f_back
        self.begun = self.ended  # a step that an error has left
        return False


_OPTIMIZERS: Final = _OptimizerSteps()


class StepCounter:
    """Counts the training steps of one criterion.

    All calls up to the next ``optimizer.step()`` of any optimizer of torch belong to one step, and
    so do all calls inside ``optimizer.step(closure)``. Until an optimizer has been seen, each call
    counts as a step; when the first optimizer steps, the calls before it become one step. Loops
    without an optimizer use :meth:`one_step`.

    Attributes:
        steps: How many have begun.
    """

    def __init__(self, steps: int = 0) -> None:
        _OPTIMIZERS.watch()
        self.steps = steps
        self._ended: int | None = None  # what the optimizers had done at the last call
        self._guessed = 0  # calls that count as steps because no optimizer was seen
        self._known = False
        self._said = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy goes on from the same step, with the optimizers of its own process."""
        return type(self), (self.steps,)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """All calls inside belong to one step."""
        if self._said:
            yield
            return
        self._said = self._known = True
        self.steps += 1
        try:
            yield
        finally:
            self._said = False
            self._ended = _OPTIMIZERS.ended

    def next_call(self) -> int:
        """The number of the step that this call belongs to, from 0."""
        if not self._said:
            before, self._ended = self._ended, _OPTIMIZERS.ended
            stepped = before is not None and before != self._ended
            if not self._known and (stepped or _OPTIMIZERS.inside()):
                self._known = True
                self.steps -= max(self._guessed - 1, 0)
            if not self._known:
                self._guessed += 1
            if before is None or stepped or not self._known:
                self.steps += 1
        return self.steps - 1

    def has_turn(self, step: int, every: int) -> bool:
        """Whether a step is the one among ``every`` that has margins.

        It is the first of each group of ``every`` steps. But once the calls of two groups have
        counted as steps, because no optimizer was seen, its place changes from group to group.
        Otherwise a loop with two calls a step would have all margins in the same one of the two,
        and possibly never in the one whose gradient it steps by. A continued training begins
        without such calls, whatever its step.
        """
        group, place = divmod(step, every)
        if self._known or self._guessed <= 2 * every:
            return place == 0
        return place == floor(every * (group * _GOLDEN % 1))
