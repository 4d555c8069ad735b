"""How a training runs, apart from what it minimises and how weights are stepped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from margin_ext.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training runs, apart from what it minimises and how weights are stepped.

    Attributes:
        augment: Changes the inputs [B, ...] of each step, at random.
        settings: What must agree, besides the objective's and the recipe's settings, for a
            checkpoint to be continued; values that JSON knows.
        ranks: The processes that train together and share what is measured; rank 0 writes.
        save_every: Seconds after which the state is saved in mid-epoch too. Saving takes at most
            2 % of the time; 0 saves after each step.

    Raises:
        ValueError: save_every is negative or not a number.

    >>> RunOptions(save_every=10.0).ranks.size
    1
    """

    augment: Callable[[Tensor], Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks = ALONE
    save_every: float = 60.0

    def __post_init__(self) -> None:
        if not self.save_every >= 0:
            raise ValueError(f"save_every must be at least 0, got {self.save_every}")
