"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["InUseError", "exclusive", "hold"]

# Locks that this process keeps, by its number and the file: a fork has none of its own.
_HELD: dict[tuple[int, Path], int] = {}


class InUseError(OSError):
    """Another run writes to the same place at this moment."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Refuse a second writer of the same file or folder, in this process or another.

    The lock is a hidden file: ``.lock`` in a folder, ``.NAME.lock`` next to a file. The system
    releases it when the process ends, however it ends, so that the file may stay where it is.

    Args:
        path: The file (it need not exist), or a folder that exists.

    Raises:
        InUseError: Another one has it.
    """
    lock = _locked(path)
    try:
        yield
    finally:
        os.close(lock)


def hold(path: Path) -> None:
    """Refuse a second process that writes to the same file, until this process ends.

    Raises:
        InUseError: Another process has it.
    """
    key = os.getpid(), path.absolute()
    if key not in _HELD:
        _HELD[key] = _locked(path)


def _locked(path: Path) -> int:
    """Descriptor of the lock file, which holds the lock until it is closed."""
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(
            f"another run is writing to {path}: wait for it, or write elsewhere"
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor
