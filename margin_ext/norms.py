"""The threat norm l_p and its dual l_q, 1/p + 1/q = 1 (arXiv 1907.11780, section 2)."""

from __future__ import annotations

import math

__all__ = ["dual_exponent", "norm_name", "op_exponent"]


def dual_exponent(p: float | str) -> float:
    """Return q with 1/p + 1/q = 1, for p a real number >= 1 or infinity (``math.inf`` or "inf").

    Raises:
        ValueError: p is not a number of at least 1.

    Example:
        >>> dual_exponent("inf"), dual_exponent(3)
        (1.0, 1.5)
    """
    try:
        value = float(p)
    except (TypeError, ValueError):
        raise ValueError(f'p must be a number >= 1 or "inf", got {p!r}') from None
    if not value >= 1:
        raise ValueError(f'p must be a number >= 1 or "inf", got {p!r}')
    if value == 1:
        return math.inf
    if math.isinf(value):
        return 1.0
    return value / (value - 1)


def op_exponent(p: float | str) -> float:
    """The dual exponent q as the compiled ops take it, 0 for infinity.

    An exported program is stored as JSON, which has no infinity.

    Example:
        >>> op_exponent(1), op_exponent(2)
        (0.0, 2.0)
    """
    q = dual_exponent(p)
    return 0.0 if math.isinf(q) else q


def norm_name(p: float) -> str:
    """l1, l2, linf, l1.5.

    Example:
        >>> norm_name(2.0), norm_name(math.inf)
        ('l2', 'linf')
    """
    return "linf" if math.isinf(p) else f"l{p:g}"
