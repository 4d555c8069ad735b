"""What every kind of labels offers, and the kind with a class label at each position.

Logits are [B, C] or [B, C, d1, ...], and a value per position has the shape [B, d1, ...];
docs/labels.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import (
    check_class_weight,
    check_grad,
    check_logits_and_labels,
    check_same_device,
    check_target,
    shape_text,
)
from margin_ext.functional.class_gap import class_gap
from margin_ext.functional.composed_loss import composed_loss
from margin_ext.functional.first_order_margin import first_order_margin
from margin_ext.functional.fused_loss import fused_loss
from margin_ext.loss_settings import Aggregation, LossSettings
from margin_ext.op_results import LogitGap, MarginLoss, SampleGap
from margin_ext.regularizers import Regularizer

__all__ = ["DenseLabels", "flat_positions", "margin_of", "per_position"]

# A bounded regularizer: mu = 0 times its value is 0 even where the gap is infinite.
_BOUNDED = Regularizer.ramp(0.0, 1.0)


@dataclass(frozen=True)
class DenseLabels:
    """Class labels of positions, int64 [B, d1, ...].

    The gaps of a sample's positions are joined into one gap, and every position gets the
    regularizer of its sample's margin. The other kinds of labels are subclasses. ``nearest`` says
    which classes gaps are measured to; its form is known only to the labels that returned it.

    Attributes:
        target: The labels.
        class_weight: [C], or None.
        ignore_index: Positions with this label do not count.
        aggregation: "mean" or "worst".
        validate: Check the labels on CUDA too; on CPU they always are.
    """

    target: Tensor
    class_weight: Tensor | None = None
    ignore_index: int = -100
    aggregation: Aggregation = "mean"
    validate: bool = False

    # Whether every sample has one class label: only then can gaps to other classes be searched.
    single = False

    def positions_counted(self) -> Tensor:
        """Whether a position counts, bool [B, d1, ...]."""
        return self.target != self.ignore_index

    def counted(self) -> Tensor:
        """Whether any position of a sample counts, bool [B]."""
        return flat_positions(self.positions_counted()).any(1)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Class weight of each label [B, d1, ...], 0 where ignored."""
        counted = self.positions_counted()
        if self.class_weight is None:
            return counted.to(dtype)
        weight = self.class_weight.to(dtype)
        return torch.where(counted, weight[torch.where(counted, self.target, 0)], 0.0)

    def total(self, weight: Tensor) -> Tensor:
        """The divisor of the mean: the sum of the weights."""
        return weight.sum()

    def correct(self, logits: Tensor, of_positions: Tensor) -> Tensor:
        """Whether each position is classified correctly, bool [B, d1, ...]."""
        return self.positions_counted() & (of_positions > 0)

    def cross_entropy(
        self, logits: Tensor, settings: LossSettings, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The cross-entropy alone, reduced as the settings say."""
        dtype = accumulation_dtype(logits) if dtype is None else dtype
        return nn.functional.cross_entropy(
            logits.to(dtype),
            self._cross_entropy_target(dtype),
            None if self.class_weight is None else self.class_weight.to(dtype),
            reduction=settings.reduction,
            **settings.cross_entropy_keywords(),
        )

    def label_losses(self, logits: Tensor, settings: LossSettings) -> Tensor:
        """The cross-entropy of each label [B, d1, ...], with its weight; 0 where ignored."""
        return self.cross_entropy(logits, replace(settings, reduction="none"))

    def _cross_entropy_target(self, dtype: torch.dtype) -> Tensor:
        return self.target

    def logit_gap(self, logits: Tensor, nearest: Tensor | None = None) -> LogitGap:
        """The gap of every position [B, d1, ...]."""
        check_logits_and_labels(logits, self.target)
        if nearest is not None:
            if nearest.shape != self.target.shape:
                raise ValueError(
                    f"nearest must have the shape of target, {shape_text(self.target)}, "
                    f"got {shape_text(nearest)}"
                )
            nearest = nearest.reshape(-1)
        rows, labels = self._rows(logits)
        try:
            gap, runner_up = class_gap(rows, labels, nearest, self.ignore_index, self.validate)
        except ValueError:
            self._name_bad_label(logits)
            raise
        return LogitGap(per_position(gap, logits), per_position(runner_up, logits))

    def _rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.movedim(1, -1).reshape(-1, logits.shape[1]), self.target.reshape(-1)

    def _name_bad_label(self, logits: Tensor) -> None:
        # The op sees each position as a row and would name the row; this names the position.
        check_target(self.target, logits.shape[1], self.ignore_index)

    def sample_gap(self, logits: Tensor, fixed: SampleGap | None = None) -> SampleGap:
        """One gap a sample; see :func:`margin_ext.functional.sample_gap`."""
        check_logits_and_labels(logits, self.target)
        if self.class_weight is not None:
            check_class_weight(self.class_weight, logits)
        gaps, nearest = self._gaps(logits, fixed)
        fraction = self._fractions(gaps.detach()) if fixed is None else fixed.fraction
        parts = torch.where(fraction == 0, 0.0, fraction * torch.where(fraction == 0, 0.0, gaps))
        gap = torch.where(self.counted(), flat_positions(parts).sum(1), math.nan)
        return SampleGap(gap, gaps, fraction, nearest)

    def _gaps(self, logits: Tensor, fixed: SampleGap | None) -> tuple[Tensor, Tensor]:
        if fixed is None:
            gaps, nearest = self.logit_gap(logits)
            return gaps, nearest.reshape(-1)
        nearest = per_position(fixed.nearest, logits)
        known = nearest >= 0
        label = torch.where(known, self.target, 0).unsqueeze(1)
        own, other = logits.gather(1, label), logits.gather(1, nearest.clamp_min(0).unsqueeze(1))
        dtype = accumulation_dtype(logits)
        gaps = torch.where(known, (own.to(dtype) - other.to(dtype)).squeeze(1), torch.nan)
        return gaps, fixed.nearest

    def _fractions(self, gaps: Tensor) -> Tensor:
        """The factor of each position's gap [B, d1, ...] in the gap of its sample.

        If all weights of a sample are 0, the positions that count have equal weights.
        """
        values, counted = flat_positions(gaps), flat_positions(self.positions_counted())
        if self.aggregation == "worst" and values.shape[1] > 0:
            smallest = torch.where(counted, values, math.inf).argmin(dim=1, keepdim=True)
            # Infinite gaps (masked classes) tie with positions that do not count.
            first = counted.to(torch.uint8).argmax(dim=1, keepdim=True)
            smallest = torch.where(counted.gather(1, smallest), smallest, first)
            fraction = torch.zeros_like(values).scatter(1, smallest, 1.0)
            return torch.where(counted, fraction, 0.0).reshape(gaps.shape)
        w = flat_positions(self.weight(gaps.dtype)).to(values.dtype)
        w = torch.where(w.sum(1, keepdim=True) != 0, w, counted.to(w.dtype))
        total = w.sum(1, keepdim=True)
        return (w / torch.where(total != 0, total, 1.0)).reshape(gaps.shape)

    def nearest(self, logits: Tensor) -> Any:
        """The classes and positions that determine the margin of each sample."""
        return self.sample_gap(logits.detach())

    def gap(self, logits: Tensor, nearest: Any) -> Tensor:
        """The samples' gaps [B], differentiable; NaN for ignored samples."""
        return self.sample_gap(logits, nearest).gap

    def gap_cotangent(self, logits: Tensor, nearest: Any) -> tuple[Tensor, Tensor | None]:
        """Gradient of the sum of the gaps by the logits, and the power of two that scales it."""
        if logits.dtype != torch.float16 or nearest.fraction.numel() == 0:
            return self.cotangent(logits, nearest), None
        # The fraction of one position among many would be rounded away. One factor serves the
        # batch: where samples depend on each other (BatchNorm in training), a row of the input
        # gradient is a sum over all their gaps, and could not be scaled back sample by sample.
        largest = nearest.fraction.max()
        mantissa, _ = torch.frexp(largest)
        scale = torch.where(largest > 0, mantissa / largest, 1.0)
        return self.cotangent(logits, nearest, scale), scale

    def cotangent(self, logits: Tensor, found: SampleGap, scale: float | Tensor = 1.0) -> Tensor:
        """Gradient of scale * the sum of the gaps by the logits, of their shape and type."""
        nearest = per_position(found.nearest, logits).unsqueeze(1)
        known = nearest >= 0
        u = torch.where(known, (found.fraction * scale).unsqueeze(1), 0.0).to(logits.dtype)
        label = torch.where(known, self.target.unsqueeze(1), 0)
        cotangent = torch.zeros_like(logits.detach()).scatter_(1, label, u)
        return cotangent.scatter_add_(1, nearest.clamp_min(0), -u)

    def loss(
        self, logits: Tensor, grad: Tensor | None, nearest: Any, settings: LossSettings
    ) -> MarginLoss:
        """The loss; without grad, positions and their gaps count as samples."""
        if grad is not None or settings.phi.code is None:
            return self.sample_loss(logits, grad, nearest, settings)
        check_logits_and_labels(logits, self.target)
        rows, labels = self._rows(logits)
        try:
            out = fused_loss(rows, labels, None, None, settings, self.validate)
        except ValueError:
            self._name_bad_label(logits)
            raise
        loss = per_position(out.loss, logits) if settings.reduction == "none" else out.loss
        margin, gap = per_position(out.margin, logits), per_position(out.gap, logits)
        return out._replace(loss=loss, margin=margin, gap=gap)

    def sample_loss(
        self, logits: Tensor, grad: Tensor | None, fixed: SampleGap | None, settings: LossSettings
    ) -> MarginLoss:
        """The loss of the samples' margins; see ``functional.sample_margin_loss``."""
        found = self.sample_gap(logits, fixed)
        gap = found.of_positions if grad is None else found.gap
        margin, norm = margin_of(logits, gap, grad, settings)
        correct = self.correct(logits, found.of_positions)
        return composed_loss(self, logits, margin, gap, norm, correct, settings)

    def loss_of(
        self,
        logits: Tensor,
        margin: Tensor,
        gap: Tensor,
        norm: Tensor,
        settings: LossSettings,
        term: Tensor | None = None,
    ) -> MarginLoss:
        """The loss of given margins [B]; a term [B, d1, ...] takes the place of phi."""
        if self.class_weight is not None:
            check_class_weight(self.class_weight, logits)
        correct = self.correct(logits, self.logit_gap(logits.detach()).gap)
        return composed_loss(self, logits, margin, gap, norm, correct, settings, term)

    def plain_loss(self, logits: Tensor, settings: LossSettings) -> MarginLoss:
        """The loss without its regularizer, and the gap of each sample."""
        found = self.sample_gap(logits.detach())
        plain = replace(settings, mu=0.0, regularizer=_BOUNDED)
        correct = self.correct(logits, found.of_positions)
        none = found.gap.new_empty(0)
        return composed_loss(self, logits, found.gap, found.gap, none, correct, plain)

    def weighted_slope(self, slope: Tensor, mu: float, per_sample: bool) -> Tensor:
        """mu * slope [B] times the samples' weights, which :meth:`spread` adds if per_sample."""
        slope = mu * slope
        return slope if per_sample else slope * flat_positions(self.weight(slope.dtype)).sum(1)

    def spread(self, term: Tensor) -> Tensor:
        """A per-sample term [B] at every position [B, d1, ...], times the position's weight."""
        weight = self.weight(term.dtype)
        return weight * term.reshape(term.shape + (1,) * (weight.dim() - 1))


def margin_of(
    logits: Tensor, gap: Tensor, grad: Tensor | None, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Margin and norm; without grad the margin is the gap."""
    if grad is None:
        return gap, gap.new_empty(0)
    check_same_device("logits", logits, grad=grad)
    check_grad(grad, logits.shape[0])
    std = settings.input_std
    return first_order_margin(gap, grad, p=settings.p, eps=settings.eps, input_std=std)


def per_position(rows: Tensor, logits: Tensor) -> Tensor:
    """A value per row [N], as [B, d1, ...]."""
    return rows.reshape(logits.shape[:1] + logits.shape[2:])


def flat_positions(values: Tensor) -> Tensor:
    """[B] or [B, d1, ...] as [B, P]."""
    return values.unsqueeze(-1).flatten(1)
