"""JSON that every reader understands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["finite_json"]


def finite_json(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become strings that Python's float() reads.

    Example:
        >>> finite_json({"margins": [0.5, float("inf")]})
        {'margins': [0.5, 'inf']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value
