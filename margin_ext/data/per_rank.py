"""Data of which every rank has a part of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["PerRank"]


class PerRank:
    """Marks data that each rank reads for itself, such as shards that are split over the nodes.

    Without it, all ranks must be given the same data in the same order, and share them. With it,
    each rank must yield its own samples, none of them on two ranks, and it measures all of them.
    The i-th sample of rank r gets the number r + i * (number of ranks), as DistributedSampler
    deals samples out: so a ``limit`` of the data set's size leaves out what DistributedSampler
    adds at the end to give all ranks equally many. Ranks may have different numbers of samples, or
    none.

    Example:
        >>> import torch
        >>> data = PerRank([(torch.rand(4, 2), torch.tensor([0, 1, 1, 0]))])
        >>> [inputs.shape for inputs, target in data]
        [torch.Size([4, 2])]
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)
