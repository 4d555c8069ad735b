"""The search for the classes with the smallest first-order margins of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.bounds.class_gradients import ClassGradients
from margin_ext.bounds.nearest_so_far import NearestSoFar
from margin_ext.checks import check_labels
from margin_ext.models.checked_logits import checked_logits, class_order
from margin_ext.models.in_parts import memory_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin_ext.bounds.margin_sketch import MarginSketch, SketchedMargins
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["ClassSearch"]

# What part of a batch's work the sketch is, for the progress: most of it.
_SKETCHED = 0.75
# Inputs of a backward pass that takes several ranks: at least so many, and more of small ones.
_FEWEST, _NUMBERS, _MOST = 64, 2**20, 256
# Ranks from which on this is done in any case.
_BATCHED_FROM = 64


class ClassSearch:
    """One batch, its logits, and the nearest classes found so far.

    Attributes:
        logits: [B, C].
        label: Class [B] from which the gaps are measured.
        order: The other classes by rank, largest logit first [B, R].
        gaps: Logit gaps to them, ascending [B, R].
        nearest: The nearest classes.
        directions: Random directions of the sketch that was used; 0: none was.
        by_differences: Its derivatives are finite differences.
    """

    logits: Tensor
    label: Tensor
    order: Tensor
    gaps: Tensor
    nearest: NearestSoFar
    directions = 0
    by_differences = False

    def __init__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor | None,
        threats: Sequence[ThreatModel],
        *,
        norm_bound: Sequence[float] | None = None,
        count: int = 1,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Describe the search; nothing is computed yet.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            label: [B]; None: the predicted class.
            threats: Norms and units.
            norm_bound: For each of them an upper bound on the dual norm of every gap's gradient.
            count: How many classes to find, at most.
            progress: Told what part of the work is done, from 0 to 1.
        """
        self._model = model
        self._inputs = inputs.detach()
        self._given_label = label
        self._threats = threats
        self._norm_bound = norm_bound
        self._count = count
        self._progress = progress

    def _begin(self, logits: Tensor) -> None:
        """Order the classes by logit, and forget all gradients."""
        self.logits = logits.detach()
        if self._given_label is None:
            self.label = self.logits.argmax(dim=1)
        else:
            check_labels("target", self._given_label, logits.shape[1], None)
            self.label = self._given_label
        self.order = class_order(self.logits, self.label)
        wide = torch.promote_types(self.logits.dtype, self._inputs.dtype)
        z = self.logits.to(torch.promote_types(wide, torch.float32))
        self.gaps = z.gather(1, self.label.unsqueeze(1)) - z.gather(1, self.order)
        count = min(self._count, self.order.shape[1])
        self.nearest = NearestSoFar(self._threats, self.gaps, self._norm_bound, count)

    def in_order(self, ranks: int | None) -> None:
        """Compute gradients rank by rank, of the first ``ranks`` or of all.

        The passes end where a norm bound shows that no class that is left can be nearer.
        """
        gradients = ClassGradients(self._model, self._inputs)
        self._begin(gradients.logits)
        count = self.order.shape[1] if ranks is None else min(ranks, self.order.shape[1])
        rows = torch.arange(len(self.label), device=self.label.device)
        together = self._together(count)
        rank = 0
        while rank < count and not self._bounded_from(rank):
            several = torch.arange(rank, min(rank + together, count), device=rows.device)
            ranks_of_all = several.expand(len(rows), -1)
            rank += len(several)
            self._look(gradients, rows, ranks_of_all, last=rank == count)
            together = min(together, gradients.together)
            self._progress(rank / count)

    def _together(self, count: int) -> int:
        """How many of so many ranks a backward pass takes."""
        most = _FEWEST if count >= _BATCHED_FROM else 0
        # A norm bound may end the search after any rank.
        if self._norm_bound is None and memory_limit(self._model) is None:
            most = min(max(_NUMBERS // max(self._inputs[0].numel(), 1), _FEWEST), _MOST)
        return max(1, most // len(self.label))

    def _bounded_from(self, rank: int) -> bool:
        """Whether the norm bound shows that no class of this rank or a higher one is nearer."""
        if self._norm_bound is None or rank == 0:
            return False
        gap = self.gaps[:, rank]
        bound = gap.new_tensor(list(self._norm_bound)).unsqueeze(1)
        # Below 0 a smaller gradient means a lower margin, of which the bound says nothing.
        return bool(((gap >= 0) & (gap / bound >= self.nearest.farthest)).all())

    def by_sketch(self, sketch: MarginSketch) -> bool:
        """Compute gradients in the order of the sketch's bounds, until the answer is certain.

        Returns:
            Whether the sketch served; if not, it says why.
        """
        with torch.no_grad():
            self._begin(checked_logits(self._model, self._inputs))
        if not sketch.serves(self.logits.shape[1]):
            return False
        bounds = sketch.margins(
            self._model, self._inputs, self.logits, self.label, self.order,
            lambda part: self._progress(_SKETCHED * part),
        )  # fmt: skip
        if bounds is None:
            return False
        if not self._by_bounds(bounds):
            sketch.contradicted()
            return False
        self.directions, self.by_differences = bounds.directions_used, bounds.by_differences
        return True

    def _by_bounds(self, bounds: SketchedMargins) -> bool:
        """Search in the order of lower bounds; False where gradients contradict them."""
        lower = bounds.lower
        if self._norm_bound is not None:
            known = lower.new_tensor(list(self._norm_bound)).reshape(-1, 1, 1)
            lower = torch.where(self.gaps >= 0, torch.maximum(lower, self.gaps / known), lower)
        gradients = ClassGradients(self._model, self._inputs)
        unseen = torch.ones_like(self.order, dtype=torch.bool)
        while True:
            may_be_nearer = unseen & (lower < self.nearest.farthest.unsqueeze(2))
            # A sample needs a gradient even if every bound is infinite.
            open_norms = may_be_nearer.any(dim=2) | (self.nearest.gradients == 0)
            rows = open_norms.any(dim=0).nonzero().squeeze(1)
            self._progress(_SKETCHED + (1 - _SKETCHED) * (1 - len(rows) / max(len(unseen), 1)))
            if not len(rows):
                return True
            first_open = open_norms[:, rows].long().argmax(dim=0)
            left = lower[first_open, rows].masked_fill(~unseen[rows], torch.inf)
            ranks = left.argmin(dim=1, keepdim=True)
            grads = self._look(gradients, rows, ranks)
            if not bounds.agrees(rows, ranks, grads):
                return False
            unseen[rows.unsqueeze(1), ranks] = False

    def _look(
        self, gradients: ClassGradients, rows: Tensor, ranks: Tensor, *, last: bool = False
    ) -> Tensor:
        """Compute the gradients [n, K, ...] of samples [n] and ranks [n, K]."""
        classes = self.order[rows].gather(1, ranks)
        grads = gradients.of_gaps(rows, self.label[rows], classes, last=last)
        self.nearest.update(rows, ranks, grads)
        return grads
