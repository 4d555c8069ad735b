"""What a command says to the person who called it."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FAILED", "INTERRUPTED", "complain", "plain_warnings", "tell"]

FAILED = 2
INTERRUPTED = 130


def tell(line: str) -> None:
    """Write a line of progress to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def complain(command: str, message: object) -> int:
    """Write one line about what is wrong; returns the exit status."""
    tell(f"margin-ext {command}: {' '.join(str(message).split())}")
    return FAILED


@contextmanager
def plain_warnings(command: str) -> Iterator[None]:
    """Show warnings as one line each, without the place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(command, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
