"""Writing files so that a kill leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["write_atomically", "write_text"]

# A temporary file is named .NAME.PROCESS@HOST.RANDOM.tmp, so that a later writer can tell whether
# the one that made it still lives. The name has at most so many characters.
_NAMED = 40
_MADE_BY = re.compile(r"\.(\d+)@(.*)\.[^.]+\.tmp$")


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write into a temporary file in the same folder and move it to ``path``.

    What killed writers of the same file left behind is removed.

    Args:
        path: The file; its folder is made where it is missing.
        write: Gets the open temporary file.

    Raises:
        OSError: It cannot be written, or ``path`` is a folder, a pipe or a device.
    """
    try:
        _write(path, write)
    except OSError as error:
        # Nobody asked for the temporary file, so the message names the file itself.
        named = error.filename is not None and not str(error.filename).endswith(".tmp")
        if error.errno is None or named:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file, so nothing is written to it")
    _remove_leftovers(path)
    prefix = f"{_hidden(path)}.{os.getpid()}@{socket.gethostname()}."
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files that only the owner reads; results are as other files are.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text atomically in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _remove_leftovers(path: Path) -> None:
    for file in path.parent.glob(f"{_escaped(_hidden(path))}.*.tmp"):
        made_by = _MADE_BY.search(file.name)
        if made_by is None or made_by[2] != socket.gethostname() or _lives(int(made_by[1])):
            continue
        # Another machine may bear the same name: a living writer holds the lock.
        with contextlib.suppress(OSError), file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink(missing_ok=True)


def _hidden(path: Path) -> str:
    """How the temporary file's name begins: short enough where the file's own is long."""
    return f".{path.name[:_NAMED]}"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    # Without it a power cut may undo the move. Some file systems do not offer it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
