"""Statistics of the margins of a batch, kept on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from torch import Tensor

__all__ = ["MARGIN_STATISTICS", "STATISTIC_NAMES", "BatchStatistics", "without_margins"]

# The order is that of `Statistic` in csrc/core/statistics.h.
STATISTIC_NAMES: Final = (
    "minimum_margin",
    "average_margin",
    "average_gap",
    "average_gradient_norm",
    "accuracy",
    "cross_entropy",
    "regularizer",
    "count",
    "gradient_scale",
)
# Those that need margins; a pass without them knows the others.
MARGIN_STATISTICS: Final = (
    "minimum_margin",
    "average_margin",
    "average_gradient_norm",
    "regularizer",
)


class BatchStatistics(Mapping[str, Tensor]):
    """Statistics of one batch as 0-d tensors on the device: reading them does not synchronise.

    Over the samples that are not ignored: ``minimum_margin`` and ``average_margin`` (signed, of
    the margin that the regularizer saw), ``average_gap``, ``average_gradient_norm`` (NaN where no
    gradient was given), ``accuracy`` (fraction with a positive gap to
    every class), ``cross_entropy``
    and ``regularizer`` (as they enter the loss), ``count``. All but ``count`` are NaN for an empty
    batch. ``gradient_scale`` is the kernels' own bookkeeping.
    ``median_margin`` is an attribute only. For dense logits and soft labels see docs/labels.md.

    Example:
        >>> import torch
        >>> statistics = BatchStatistics(torch.arange(9.0))
        >>> statistics.minimum_margin, statistics["accuracy"]
        (tensor(0.), tensor(4.))
    """

    def __init__(self, values: Tensor, margins: Tensor | None = None) -> None:
        """Wrap ``values`` [len(STATISTIC_NAMES)], and the margins [B] that they summarise."""
        self.values_tensor = values
        self._margins = margins

    def of(self, margins: Tensor) -> BatchStatistics:
        """The same statistics, with the margins [B] that they summarise."""
        return BatchStatistics(self.values_tensor, margins.detach())

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.values_tensor[STATISTIC_NAMES.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(STATISTIC_NAMES)

    def __len__(self) -> int:
        return len(STATISTIC_NAMES)

    def as_floats(self) -> dict[str, float]:
        """Copy everything to Python floats in one transfer (synchronises with a GPU)."""
        return dict(zip(STATISTIC_NAMES, self.values_tensor.tolist(), strict=True))

    @property
    def minimum_margin(self) -> Tensor:
        """Smallest signed margin of the batch."""
        return self["minimum_margin"]

    @property
    def average_margin(self) -> Tensor:
        """Mean signed margin of the batch."""
        return self["average_margin"]

    @property
    def median_margin(self) -> Tensor:
        """Median of the signed margins of the batch, found when it is asked for.

        It is no key of the mapping: the kernels do not compute it. NaN where there are no margins.
        """
        if self._margins is None or not self._margins.numel():
            return self.values_tensor.new_full((), math.nan)
        return self._margins.nanmedian().to(self.values_tensor.dtype)

    @property
    def average_gap(self) -> Tensor:
        """Mean logit gap of the batch."""
        return self["average_gap"]

    @property
    def average_gradient_norm(self) -> Tensor:
        """Mean dual norm of the input gradients of the gap."""
        return self["average_gradient_norm"]

    @property
    def accuracy(self) -> Tensor:
        """Fraction of the samples with a positive gap."""
        return self["accuracy"]

    @property
    def cross_entropy(self) -> Tensor:
        """Cross-entropy as it enters the loss."""
        return self["cross_entropy"]

    @property
    def regularizer(self) -> Tensor:
        """Mean of phi(t)."""
        return self["regularizer"]

    @property
    def count(self) -> Tensor:
        """Number of samples that are not ignored."""
        return self["count"]

    def __repr__(self) -> str:
        """Show the values (synchronises with a GPU)."""
        inner = ", ".join(f"{name}={value:.6g}" for name, value in self.as_floats().items())
        return f"BatchStatistics({inner})"


def without_margins(statistics: BatchStatistics) -> BatchStatistics:
    """The statistics with NaN for all that needs margins."""
    values = statistics.values_tensor.clone()
    for name in MARGIN_STATISTICS:
        values[STATISTIC_NAMES.index(name)] = math.nan
    return BatchStatistics(values)
