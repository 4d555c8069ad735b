"""The kinds of labels: class labels or probabilities, of samples or of positions.

A target is int64 [B, d1, ...] or, for probabilities, floating [B, C, d1, ...]. Each kind is a
Python class; to add one, write its class here and let ``labels_of`` return it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from margin_ext.checks import (
    check_class_weight,
    check_logits_and_labels,
    check_target,
    values_readable,
)
from margin_ext.functional.class_gap import class_gap, gap_cotangent
from margin_ext.functional.composed_loss import composed_loss
from margin_ext.functional.dense_labels import DenseLabels, margin_of, per_position
from margin_ext.functional.fused_loss import fused_loss
from margin_ext.functional.soft_gap import largest_other_class, soft_gap, soft_gap_cotangent
from margin_ext.loss_settings import Aggregation, LossSettings
from margin_ext.op_results import LogitGap, MarginLoss, SampleGap

__all__ = ["ClassLabels", "DenseLabels", "Labels", "SoftLabels", "labels_of", "sample_labels_of"]


@dataclass(frozen=True)
class SoftLabels(DenseLabels):
    """Probabilities of the classes, floating and of the shape of the logits."""

    def positions_counted(self) -> Tensor:
        """All positions count, as in torch: bool [B, d1, ...]."""
        return torch.ones_like(self.target.select(1, 0), dtype=torch.bool)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Expected class weight of each position [B, d1, ...]."""
        if self.class_weight is None:
            return self.positions_counted().to(dtype)
        return (self.target.to(dtype).movedim(1, -1) * self.class_weight.to(dtype)).sum(-1)

    def total(self, weight: Tensor) -> Tensor:
        """The divisor of the mean: the number of positions, as in torch's cross_entropy."""
        return weight.new_full((), weight.numel())

    def correct(self, logits: Tensor, of_positions: Tensor) -> Tensor:
        """Whether each position's most probable class is the predicted one."""
        return logits.argmax(1) == self.target.argmax(1)

    def _cross_entropy_target(self, dtype: torch.dtype) -> Tensor:
        return self.target.to(dtype)

    def _rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        classes = logits.shape[1]
        rows, target = logits.movedim(1, -1), self.target.movedim(1, -1)
        return rows.reshape(-1, classes), target.reshape(-1, classes)

    def _validate(self, logits: Tensor) -> None:
        if self.validate or values_readable(logits):
            check_target(self.target, logits.shape[1], self.ignore_index)

    def logit_gap(self, logits: Tensor, nearest: Tensor | None = None) -> LogitGap:
        """The soft gap of every position, and the rival of its most probable class."""
        check_logits_and_labels(logits, self.target)
        if nearest is not None:
            raise ValueError("nearest does not go with a target of probabilities")
        self._validate(logits)
        rows, q = self._rows(logits)
        gap = soft_gap(rows, q, validate=False).gap
        runner_up = largest_other_class(rows.detach(), q.argmax(dim=1))
        return LogitGap(per_position(gap, logits), per_position(runner_up, logits))

    def _gaps(self, logits: Tensor, fixed: SampleGap | None) -> tuple[Tensor, Tensor]:
        if fixed is None:
            self._validate(logits)
        rows, q = self._rows(logits)
        nearest = None if fixed is None else fixed.nearest
        gap, nearest = soft_gap(rows, q, nearest=nearest, validate=False)
        return per_position(gap, logits), nearest

    def cotangent(self, logits: Tensor, found: SampleGap, scale: float | Tensor = 1.0) -> Tensor:
        """Gradient of scale * the sum of the gaps by the logits, of their shape and type."""
        fraction = (found.fraction * scale).unsqueeze(1)
        _, q = self._rows(logits)
        rows = soft_gap_cotangent(q.to(fraction.dtype), found.nearest)
        cotangent = rows.reshape((*found.fraction.shape, logits.shape[1])).movedim(-1, 1)
        return (cotangent * fraction).to(logits.dtype)

    def loss(
        self, logits: Tensor, grad: Tensor | None, nearest: Any, settings: LossSettings
    ) -> MarginLoss:
        """The loss of the samples' margins; without grad, of every position's gap."""
        return self.sample_loss(logits, grad, nearest, settings)


@dataclass(frozen=True)
class ClassLabels(DenseLabels):
    """One class label a sample, int64 [B]: the fused op serves them."""

    single = True

    def counted(self) -> Tensor:
        """Whether a sample counts, bool [B]."""
        return self.positions_counted()

    def logit_gap(self, logits: Tensor, nearest: Tensor | None = None) -> LogitGap:
        """The gap of every sample [B]."""
        return class_gap(logits, self.target, nearest, self.ignore_index, self.validate)

    def nearest(self, logits: Tensor) -> Tensor:
        """The runner-up of every sample, int64 [B]; -1 where ignored."""
        return class_gap(logits.detach(), self.target, None, self.ignore_index, False).runner_up

    def gap(self, logits: Tensor, nearest: Tensor) -> Tensor:
        """The gaps [B] to the nearest classes, differentiable; NaN for ignored samples."""
        return class_gap(logits, self.target, nearest, self.ignore_index, False).gap

    def gap_cotangent(self, logits: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradient of the sum of the gaps by the logits."""
        ones = logits.new_ones(logits.shape[0]).detach()
        return gap_cotangent(logits, self.target, nearest, ones), None

    def loss(
        self, logits: Tensor, grad: Tensor | None, nearest: Tensor | None, settings: LossSettings
    ) -> MarginLoss:
        """The fused loss; with a regularizer that the op lacks, composed of torch functions."""
        if settings.phi.code is not None:
            return fused_loss(logits, self.target, grad, nearest, settings, self.validate)
        gap = self.logit_gap(logits, nearest).gap
        correct = self.correct(logits, gap if nearest is None else self.logit_gap(logits).gap)
        margin, norm = margin_of(logits, gap, grad, settings)
        if self.class_weight is not None:
            check_class_weight(self.class_weight, logits)
        return composed_loss(self, logits, margin, gap, norm, correct, settings)

    def plain_loss(self, logits: Tensor, settings: LossSettings) -> MarginLoss:
        """The loss without its regularizer, and the gap of each sample."""
        return self.loss(logits, None, None, replace(settings, mu=0.0))

    def weighted_slope(self, slope: Tensor, mu: float, per_sample: bool) -> Tensor:
        """mu * slope [B] times the weight of each sample."""
        return mu * self.weight(slope.dtype) * slope

    def spread(self, term: Tensor) -> Tensor:
        """The term unchanged: its weights are already in it."""
        return term


Labels: TypeAlias = DenseLabels


def labels_of(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    aggregation: Aggregation = "mean",
    validate: bool = False,
) -> DenseLabels:
    """The labels of a batch, as the class of their kind."""
    if target.dim() == 1 and logits.dim() <= 2:
        return ClassLabels(target, class_weight, ignore_index, aggregation, validate)
    return sample_labels_of(target, class_weight, ignore_index, aggregation, validate)


def sample_labels_of(
    target: Tensor,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    aggregation: Aggregation = "mean",
    validate: bool = False,
) -> DenseLabels:
    """As ``labels_of``, but labels [B] are dense labels with one position a sample."""
    kind = SoftLabels if target.is_floating_point() else DenseLabels
    return kind(target, class_weight, ignore_index, aggregation, validate)
