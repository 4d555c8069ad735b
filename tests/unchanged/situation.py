"""One situation: what is computed, and how exact it can be on other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Situation"]


@dataclass(frozen=True)
class Situation:
    """What is computed.

    Attributes:
        compute: Returns tensors, numbers, texts or mappings of them, by name.
        precision: The coarsest type of the computation.
        search: Many steps follow each other, so that rounding adds up.
    """

    compute: Callable[[], Mapping[str, Any]]
    precision: torch.dtype = torch.float32
    search: bool = False
