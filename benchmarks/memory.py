"""Whether the memory of large results is old or fresh from the system, on the CPU.

A page that comes fresh from the system is filled with zeros at its first use, which takes several
times as long as writing to it. glibc gives large blocks back to the system when they are freed, or
not, depending on what was allocated before; here it is told what to do.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

from benchmarks.timing import Contender

__all__ = ["fresh_each_call", "keep_freed_memory"]

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def _glibc() -> Any:
    """The C library, where it is glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def keep_freed_memory() -> bool:
    """From now on the process keeps what is freed, for later results; False where it is not glibc.

    Only then can :func:`fresh_each_call` be had.
    """
    library = _glibc()
    # No block is mapped by itself, and the heap never shrinks.
    return bool(library and library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1))


def fresh_each_call(contender: Contender) -> Contender:
    """The same, after all freed memory was given back to the system."""
    library = _glibc()

    def ready(inputs: Any) -> Any:
        state = contender.ready(inputs)
        library.malloc_trim(0)
        return state

    return replace(contender, before=ready)
