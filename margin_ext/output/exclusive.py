"""One writer at a time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["InUseError", "exclusive"]


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
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"another run is writing to {path}: wait for it, or write elsewhere"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
