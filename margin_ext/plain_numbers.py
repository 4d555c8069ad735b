"""Numbers as users give them: Python's, numpy's, tensors with one element."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

__all__ = ["real_numbers", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``.

    Raises:
        ValueError: It is smaller, or no whole number.

    Example:
        >>> import numpy as np
        >>> whole_number("batch_size", np.int64(8)), whole_number("batch_size", 8.0)
        (8, 8)
    """
    try:
        number = _one(value)
        whole = int(number)
    except (TypeError, ValueError, OverflowError):
        whole, number = 0, None
    if number is None or isinstance(value, bool) or whole != number or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole


def real_numbers(name: str, value: Any, *, texts: bool = False) -> tuple[float, ...]:
    """One or several numbers as a tuple of Python's own.

    Args:
        name: For the message.
        value: A number, an array or tensor of any number of elements, or an iterable.
        texts: Take texts such as "inf" and "2" for numbers.

    Raises:
        ValueError: It is something else.

    Example:
        >>> import numpy as np, torch
        >>> real_numbers("p", np.float32(0.5)), real_numbers("p", torch.tensor([1.0, 2.0]))
        ((0.5,), (1.0, 2.0))
    """
    given = value
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, tensors
        value = value.tolist()
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray)
    try:
        found = tuple(_one(item) for item in (value if several else (value,)))
        if texts or not any(isinstance(item, str) for item in found):
            return tuple(map(float, found))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or several, got {given!r}") from error
    raise ValueError(f"{name} must be a number or several, got the text {given!r}")


def _one(value: Any) -> float | str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise TypeError("True and False are no numbers")
    if isinstance(value, bytes | bytearray):  # float would read them as a text
        raise TypeError("bytes are no numbers")
    if isinstance(value, numbers.Integral):
        return int(value)
    if hasattr(value, "item"):
        return _one(value.item())
    return float(value)
