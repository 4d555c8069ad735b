"""Outcomes of single images as text, so that a JSON file with thousands of them can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bits", "numbers", "read_bits", "read_numbers"]


def bits(values: NDArray[Any]) -> str:
    """Bool [N] as text.

    >>> bits(np.array([True, False, True]))
    '101'
    """
    return "".join("1" if value else "0" for value in values)


def read_bits(text: str) -> NDArray[np.bool_]:
    """What `bits` wrote."""
    return np.array([letter == "1" for letter in text], dtype=bool)


def numbers(values: NDArray[Any]) -> str:
    """Floats [N] as text with four decimals.

    >>> numbers(np.array([1.0, np.inf]))
    '1.0000 inf'
    """
    return " ".join(f"{value:.4f}" for value in values)


def read_numbers(text: str) -> NDArray[np.float64]:
    """What `numbers` wrote."""
    return np.array([float(word) for word in text.split()], dtype=np.float64)
