"""What a mistyped name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["suggestion"]


def suggestion(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error's sentence that names the known word which is most like this one.

    Args:
        name: What was given.
        known: What it may be.
        cutoff: From 0 to 1: how like it a word must be.

    Returns:
        Empty where no word is like it.

    Example:
        >>> suggestion("taw", ["tau", "mu"])
        '; did you mean tau?'
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
