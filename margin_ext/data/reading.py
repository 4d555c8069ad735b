"""How samples are read from data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from margin_ext.plain_numbers import whole_number
from margin_ext.threat import DataRange, check_data_range

__all__ = ["BatchFunction", "Reading"]

# Takes inputs and target from whatever a loader yields.
BatchFunction: TypeAlias = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Reading:
    """How samples are read from data.

    Attributes:
        batch_size: Largest batch; None: the loader's own, 256 for arrays and data sets.
        limit: Only the first ``limit`` samples.
        data_range: Inputs outside are an error.
        batch_fn: Takes (inputs, target) from a batch of another form, such as
            ``lambda batch: (batch[0], batch[2])``.

    Raises:
        TypeError, ValueError: batch_size or limit is not a whole number from 1 on, or data_range
            is no range.

    Example:
        >>> Reading(batch_size=64, limit=1000).limit
        1000
    """

    batch_size: int | None = None
    limit: int | None = None
    data_range: DataRange | None = None
    batch_fn: BatchFunction | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value))
        if self.data_range is not None:
            check_data_range(self.data_range)
