"""The nearest classes among those whose gradients have been computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.functional import class_margins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin_ext.threat import ThreatModel

__all__ = ["NearestSoFar"]


class NearestSoFar:
    """The ``count`` smallest first-order margins of B samples for P threat models.

    Attributes:
        margin: [P, B, count], smallest first; infinite where there is none yet.
        rank: The classes' places among the others by logit, from 0 [P, B, count]. Of classes with
            the same margin the one with the larger logit comes first.
        norm: Dual norms of their gradients [P, B, count].
        gradients: Classes that were looked at [B].
    """

    def __init__(
        self,
        threats: Sequence[ThreatModel],
        gaps: Tensor,
        norm_bound: Sequence[float] | None = None,
        count: int = 1,
    ) -> None:
        """Begin without a class.

        Args:
            threats: Norms, with the same units.
            gaps: To every other class, by rank [B, R].
            norm_bound: For each threat model a bound that no gradient's norm may exceed.
            count: How many classes to keep.
        """
        self._threats = threats
        self._gaps = gaps
        self._norm_bound = norm_bound
        shape = (len(threats), gaps.shape[0], count)
        self.margin = gaps.new_full(shape, torch.inf)
        self.rank = torch.zeros(shape, dtype=torch.int64, device=gaps.device)
        self.norm = gaps.new_zeros(shape)
        self.gradients = torch.zeros_like(self.rank[0, :, 0])

    @property
    def farthest(self) -> Tensor:
        """The margins that another class must stay below to count [P, B]."""
        return self.margin[:, :, -1]

    def update(self, rows: Tensor, ranks: Tensor, grads: Tensor) -> None:
        """Take the gradients [n, K, ...] of the gaps to ranks [n, K] of samples [n].

        Raises:
            ValueError: A norm exceeds its bound.
        """
        gap = self._gaps[rows].gather(1, ranks)
        self.gradients[rows] += ranks.shape[1]
        found = class_margins(
            gap, grads, p=[t.p for t in self._threats], input_std=self._threats[0].input_std
        )
        for p, threat in enumerate(self._threats):
            if self._norm_bound is not None:
                _require_bound(found.norm[p], self._norm_bound[p], threat)
            margin, norm = (of[p].to(self.margin.dtype) for of in (found.margin, found.norm))
            self._insert(p, rows, margin, ranks, norm)

    def _insert(self, p: int, rows: Tensor, margin: Tensor, rank: Tensor, norm: Tensor) -> None:
        margin = torch.cat([self.margin[p, rows], margin], dim=1)
        rank = torch.cat([self.rank[p, rows], rank], dim=1)
        norm = torch.cat([self.norm[p, rows], norm], dim=1)
        by_rank = rank.argsort(dim=1, stable=True)
        by_margin = margin.gather(1, by_rank).argsort(dim=1, stable=True)
        chosen = by_rank.gather(1, by_margin)[:, : self.margin.shape[2]]
        self.margin[p, rows] = margin.gather(1, chosen)
        self.rank[p, rows] = rank.gather(1, chosen)
        self.norm[p, rows] = norm.gather(1, chosen)


def _require_bound(norm: Tensor, bound: float, threat: ThreatModel) -> None:
    largest = float(norm.max()) if norm.numel() else 0.0
    # Roundings of the gradient are no contradiction.
    if largest > bound * (1 + 1e-3):
        raise ValueError(
            f"norm_bound is {bound:g} for {threat.name}, and a gradient of norm {largest:g} was "
            "found: it bounds nothing, so margins would come out wrong"
        )
