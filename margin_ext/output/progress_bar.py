"""Progress bars that appear only where a person looks."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, Protocol

__all__ = ["Progress", "progress_bar"]


class Progress(Protocol):
    """What a bar can do."""

    def update(self, n: float) -> Any:
        """Count n more samples; parts of one count."""

    def close(self) -> Any:
        """Leave the terminal as it was."""


class _Silent:
    def update(self, n: float) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(total: int | None, title: str, show: bool | None) -> Progress:
    """A tqdm bar on standard error.

    Args:
        total: Number of samples, None where unknown.
        title: What is measured.
        show: True or False; None: where standard error is a terminal and tqdm is installed. A
            process without standard error (a daemon, pythonw) shows nothing.
    """
    if show is None:
        show = _is_terminal() and importlib.util.find_spec("tqdm") is not None
    if not show or sys.stderr is None:
        return _Silent()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install 'margin_ext[demo]'") from error
    bar: Progress = tqdm(total=total, desc=title, unit="sample", leave=False)
    return bar


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or replaced by something else
        return False
