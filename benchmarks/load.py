"""How busy the machine was with other work while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Load:
    """Cores that other processes used, on average over a ``with`` block.

    A figure taken beside a busy neighbour is worth little; this says so in the results.
    """

    def __enter__(self) -> Load:
        self._start = time.perf_counter(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        begun, busy, own = self._start
        elapsed = max(time.perf_counter() - begun, 1e-9)
        now = _busy_seconds()
        self.others_cores: float | None = None
        if busy is not None and now is not None:
            others = (now - busy) - (_own_seconds() - own)
            self.others_cores = round(max(others / elapsed, 0.0), 2)


def _busy_seconds() -> float | None:
    """Time that all cores together were not idle, stolen time of other guests included."""
    if not _STAT.exists():
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = map(
        int, _STAT.read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupt + soft + steal) / _TICKS


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system
