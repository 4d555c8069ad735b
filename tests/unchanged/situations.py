"""All situations by name."""

from __future__ import annotations

import torch

from . import losses, ops, reports
from .situation import Situation
from .stored import as_text, flattened

__all__ = ["SITUATIONS", "computed"]

SITUATIONS: dict[str, Situation] = {
    **losses.situations(),
    **ops.situations(),
    **reports.situations(),
}


def computed(situation: Situation) -> dict[str, str]:
    """The values of a situation as text, by one thread: sums then have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        values = situation.compute()
    finally:
        torch.set_num_threads(threads)
    return {name: as_text(value) for name, value in flattened(values).items()}
