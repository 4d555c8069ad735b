"""The loss where logits are dense or labels are soft, as gradient modes ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.functional import MarginLoss, sample_gap, sample_gap_seed, sample_margin_loss
from margin_ext.gradient_modes.objective import Critical, Objective
from margin_ext.input_gradient import seeded_gradient
from margin_ext.reference.labels import counted_positions, flat_positions, position_weight
from margin_ext.reference.regularize import regularize
from margin_ext.reference.sample_loss import combined_loss, total_weight
from margin_ext.regularizers import Regularizer

__all__ = ["SampleObjective"]

# Times a mu of 0 it is 0 at an infinite gap too.
_BOUNDED: Final = Regularizer.ramp(0.0, 1.0)


@dataclass(frozen=True)
class SampleObjective(Objective):
    """Logits [B, C] or [B, C, d1, ...]; target int64 [B, d1, ...] or probabilities like logits.

    A sample has one gap (docs/labels.md), and each of its positions carries its margin. What gaps
    are measured to is a :class:`margin_ext.reference.SampleGap`.

    Attributes:
        positions: "mean" or "worst".
    """

    positions: str = "mean"

    def __post_init__(self) -> None:
        """Refuse a search over classes, which has no meaning for several positions or labels."""
        if self.classes != "runner_up":
            raise ValueError(
                "dense logits and soft targets have their margins to the runner-up: "
                f'classes must be "runner_up", got {self.classes!r}'
            )

    def loss(
        self, logits: Tensor, target: Tensor, grad: Tensor | None, critical: Critical
    ) -> MarginLoss:
        """The loss of dense logits and grad [B, ...]; without grad, of every position's gap."""
        if grad is None:
            return super().loss(logits, target, None, None)
        out = sample_margin_loss(
            logits,
            target,
            grad,
            regularizer=self.regularizer,
            mu=self.mu,
            p=self.p,
            eps=self.eps,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction if self.normalizer is None else "sum",
            input_std=self.input_std,
            positions=self.positions,
            fixed=critical,
            validate=self.validate,
        )
        return self._normalized(out)

    def plain(self, logits: Tensor, target: Tensor) -> MarginLoss:
        """The loss without its regularizer, and each sample's gap."""
        found = self._sample_gap(logits.detach(), target, None)
        out = combined_loss(
            logits,
            target,
            found,
            found.gap,
            found.gap,
            found.gap.new_empty(0),
            regularizer=_BOUNDED,
            mu=0.0,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction if self.normalizer is None else "sum",
        )
        return self._normalized(out)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The part of the loss without the regularizer, reduced as the loss is."""
        dtype = accumulation_dtype(logits)
        soft = target.is_floating_point()
        return super().cross_entropy(logits, target.to(dtype) if soft else target)

    def critical(self, logits: Tensor, inputs: Tensor, target: Tensor) -> Critical:
        """The classes and positions that each sample's margin is taken to."""
        return self._sample_gap(logits.detach(), target, None)

    def _sample_gap(self, logits: Tensor, target: Tensor, fixed: Critical) -> Critical:
        return sample_gap(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            positions=self.positions,
            fixed=fixed,
            validate=self.validate,
        )

    def input_gradient(
        self,
        logits: Tensor,
        inputs: Tensor,
        target: Tensor,
        critical: Critical,
        *,
        create_graph: bool,
    ) -> Tensor:
        """Gradient of every sample's gap by its input, of the shape and type of inputs."""
        if logits.dtype != torch.float16 or critical.share.numel() == 0:
            seed = sample_gap_seed(logits.detach(), target, critical)
            return seeded_gradient(logits, inputs, seed, create_graph=create_graph)
        # The share of one position in many would be rounded away.
        scale = _scale_to_one(critical.share)
        seed = sample_gap_seed(logits.detach(), target, critical, scale)
        return seeded_gradient(logits, inputs, seed, create_graph=create_graph) / scale

    def gap(self, logits: Tensor, target: Tensor, critical: Critical) -> Tensor:
        """The samples' gaps [B] to what is given, differentiable; NaN for ignored samples."""
        gap: Tensor = self._sample_gap(logits, target, critical).gap
        return gap

    def counted(self, target: Tensor) -> Tensor:
        """Whether any position of a sample counts, bool [B]."""
        return flat_positions(counted_positions(target, self.ignore_index)).any(1)

    def spread(self, term: Tensor, target: Tensor) -> Tensor:
        """A term of the loss that is weighted as :meth:`norm_slope` is, in the loss's shape."""
        if not self.per_sample:
            return term
        weight = position_weight(target, self.weight, self.ignore_index, term.dtype)
        return weight * term.reshape(term.shape + (1,) * (weight.dim() - 1))

    def norm_slope(self, out: MarginLoss, target: Tensor) -> Tensor:
        """Derivative of the loss by each sample's gradient norm [B]; 0 for ignored samples.

        For reduction "none", of each position's loss, before its weight: see :meth:`spread`.
        """
        valid = self.counted(target) & ~out.gap.isinf()
        gap = torch.where(valid, out.gap, 0.0)
        with torch.enable_grad():
            norm = torch.where(valid, out.norm, 1.0).detach().requires_grad_()
            margin = gap / torch.where(norm <= self.eps, self.eps, norm)
            (slope,) = torch.autograd.grad(regularize(margin, self.regularizer).sum(), norm)
        slope = self.mu * torch.where(valid, slope, 0.0)
        if self.per_sample:
            return slope
        weight = position_weight(target, self.weight, self.ignore_index, slope.dtype)
        slope = slope * flat_positions(weight).sum(1)
        if self.normalizer is not None:
            return slope / self.normalizer
        return slope / total_weight(weight, target) if self.reduction == "mean" else slope


def _scale_to_one(share: Tensor) -> Tensor:
    """The power of two that takes the largest share into 1/2 to 1: it rounds nothing.

    It is one for the batch: where samples are coupled (BatchNorm in training), a row of the input
    gradient is a sum over all their gaps, and could not be scaled back sample by sample.
    """
    largest = share.max()
    mantissa, _ = torch.frexp(largest)
    return torch.where(largest > 0, mantissa / largest, 1.0)
