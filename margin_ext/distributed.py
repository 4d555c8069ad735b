"""Working over the ranks of torch.distributed: which ranks, and a spread batch's statistics."""

from __future__ import annotations

import torch
from torch import distributed

from margin_ext.ranks import ALONE, Ranks, all_ranks
from margin_ext.statistics import STATISTIC_NAMES, BatchStatistics
from margin_ext.together import RankFailedError

__all__ = ["ALONE", "RankFailedError", "Ranks", "all_ranks", "reduce_statistics"]

_MINIMUM = STATISTIC_NAMES.index("minimum_margin")
_COUNT = STATISTIC_NAMES.index("count")


def reduce_statistics(
    statistics: BatchStatistics, group: distributed.ProcessGroup | None = None
) -> BatchStatistics:
    """The statistics of all ranks' samples together; every rank has to call it.

    The minimum is that over the ranks, ``count`` is their sum, and the others are means over the
    samples (``cross_entropy`` and ``regularizer`` without regard to class weights). A rank whose
    value is NaN, such as one without samples, does not count. Two small all-reduces, no
    synchronisation.

    Args:
        statistics: Those of this rank, as ``criterion.statistics`` or ``out.statistics``.
        group: The process group; None: all ranks.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> criterion = AverageMarginLoss(margin="logit_gap")
        >>> loss = criterion(torch.tensor([[3.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> store = distributed.HashStore()  # of a single process; torchrun makes it for several
        >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> reduce_statistics(criterion.statistics).minimum_margin
        tensor(-1.)
        >>> distributed.destroy_process_group()
    """
    values = statistics.values_tensor
    count = values[_COUNT]
    known = ~values.isnan() & (count > 0)
    totals = torch.stack([torch.where(known, values * count, 0.0), torch.where(known, count, 0.0)])
    minimum = torch.where(known[_MINIMUM], values[_MINIMUM], torch.inf)
    distributed.all_reduce(totals, group=group)
    distributed.all_reduce(minimum, distributed.ReduceOp.MIN, group=group)
    mean = totals[0] / totals[1]
    mean[_MINIMUM] = torch.where(totals[1, _MINIMUM] > 0, minimum, torch.nan)
    mean[_COUNT] = totals[1, _COUNT]
    return BatchStatistics(mean)
