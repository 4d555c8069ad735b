"""Activation checkpointing: what is computed again in the backward sees the layers of its pass.

A pass beyond a step's first one leaves the layers' state alone (layer_state.py). A checkpointed
part of it runs once more in the backward, when the layers are back as they were; and the first
pass, run once more, would move running statistics once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

__all__ = ["recomputed_under"]

_Context = Callable[[], AbstractContextManager[None]]
# Called where a part begins that may be computed again.
_Begin = Callable[[], _Context]


class _Now(threading.local):
    begin: _Begin | None = None


_now = _Now()
_lock = threading.Lock()
_passes = 0
# torch has no public place for a context that its user did not ask for. Each checkpointed part of
# a pass makes one of these, with the function that computes it again.
_Frame: Any = getattr(checkpoint, "_CheckpointFrame", None)


def _frame(recompute: Callable[..., None], *args: Any, **keywords: Any) -> Any:
    if _now.begin is None:
        return _Frame(recompute, *args, **keywords)
    context = _now.begin()

    def again(*inputs: Any) -> None:
        with context():
            recompute(*inputs)

    return _Frame(again, *args, **keywords)


@contextmanager
def recomputed_under(begin: _Begin) -> Iterator[None]:
    """Run a pass whose checkpointed parts are computed again under a context.

    That is for ``torch.utils.checkpoint`` with ``use_reentrant=False``.
    """
    global _passes  # noqa: PLW0603
    if _Frame is None or torch.compiler.is_compiling():
        yield
        return
    before, _now.begin = _now.begin, begin
    with _lock:
        _passes += 1
        checkpoint._CheckpointFrame = _frame  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        _now.begin = before
        with _lock:
            _passes -= 1
            if not _passes:
                checkpoint._CheckpointFrame = _Frame  # type: ignore[misc]
