"""What is minimised, whatever the input gradient comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from margin_ext.accumulation import accumulation_dtype
from margin_ext.functional import MarginLoss, average_margin_loss, logit_gap
from margin_ext.input_gradient import critical_class, input_gradient
from margin_ext.reference.regularize import regularize
from margin_ext.regularizers import Regularizer

__all__ = ["Critical", "Objective"]

# What the gaps are measured to; only the objective that made it looks into it. It holds no graph.
Critical: TypeAlias = Any


@dataclass(frozen=True)
class Objective:
    """The loss of class labels, one a sample: its settings, and what gradient modes ask of it.

    Attributes:
        normalizer: What the sum over the samples is divided by; None: as ``reduction`` says.

    The others are those of :class:`margin_ext.AverageMarginLoss`.
    """

    regularizer: Regularizer
    mu: float
    tau: float
    p: float | str
    eps: float
    classes: str | int
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    input_std: float | Sequence[float] | Tensor | None
    validate: bool
    normalizer: float | Tensor | None = None

    @property
    def per_sample(self) -> bool:
        """Whether samples (positions) keep a loss each."""
        return self.reduction == "none" and self.normalizer is None

    def loss(
        self, logits: Tensor, target: Tensor, grad: Tensor | None, critical: Critical
    ) -> MarginLoss:
        """The loss of logits [B, C] and input gradients grad [B, ...], differentiable in both."""
        out = average_margin_loss(
            logits,
            target,
            grad,
            regularizer=self.regularizer,
            mu=self.mu,
            p=self.p,
            eps=self.eps,
            critical=critical,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction if self.normalizer is None else "sum",
            input_std=self.input_std,
            validate=self.validate,
        )
        return self._normalized(out)

    def _normalized(self, out: MarginLoss) -> MarginLoss:
        return out if self.normalizer is None else out._replace(loss=out.loss / self.normalizer)

    def plain(self, logits: Tensor, target: Tensor) -> MarginLoss:
        """The loss without its regularizer, and each sample's gap."""
        return replace(self, mu=0.0).loss(logits, target, None, None)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The part of the loss without the regularizer, reduced as the loss is."""
        dtype = accumulation_dtype(logits)
        value = nn.functional.cross_entropy(
            logits.to(dtype),
            target,
            None if self.weight is None else self.weight.to(dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction if self.normalizer is None else "sum",
        )
        return value if self.normalizer is None else value / self.normalizer

    def critical(self, logits: Tensor, inputs: Tensor, target: Tensor) -> Critical:
        """The class that each sample's margin is taken to, int64 [B]; -1 for ignored samples."""
        if self.classes == "runner_up":
            return logit_gap(logits.detach(), target, ignore_index=self.ignore_index).runner_up
        return critical_class(
            logits,
            inputs,
            target,
            classes=self.classes,
            p=self.p,
            eps=self.eps,
            input_std=self.input_std,
            ignore_index=self.ignore_index,
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
        return input_gradient(logits, inputs, target, critical, create_graph=create_graph)

    def gap(self, logits: Tensor, target: Tensor, critical: Critical) -> Tensor:
        """The samples' gaps [B] to what is given, differentiable; NaN for ignored samples."""
        return logit_gap(logits, target, critical=critical, ignore_index=self.ignore_index).gap

    def counted(self, target: Tensor) -> Tensor:
        """Whether a sample counts, bool [B]."""
        return target != self.ignore_index

    def spread(self, term: Tensor, target: Tensor) -> Tensor:
        """A term of the loss that is weighted as :meth:`norm_slope` is, in the loss's shape.

        It is a scalar; where samples keep a loss each, [B].
        """
        return term

    def norm_slope(self, out: MarginLoss, target: Tensor) -> Tensor:
        """Derivative of the loss by each sample's gradient norm [B]; 0 for ignored samples.

        For reduction "none" each sample's own loss is meant.
        """
        counted = self.counted(target)
        # An infinite gap, that of masked classes, has the same margin under any norm.
        valid = counted & ~out.gap.isinf()
        gap = torch.where(valid, out.gap, 0.0)
        with torch.enable_grad():
            norm = torch.where(valid, out.norm, 1.0).detach().requires_grad_()
            margin = gap / torch.where(norm <= self.eps, self.eps, norm)
            (slope,) = torch.autograd.grad(regularize(margin, self.regularizer).sum(), norm)
        weight = torch.where(counted, 1.0, 0.0).to(slope.dtype)
        if self.weight is not None:
            weight = weight * self.weight.to(slope.dtype)[torch.where(counted, target, 0)]
        slope = self.mu * weight * torch.where(valid, slope, 0.0)
        if self.normalizer is not None:
            return slope / self.normalizer
        return slope / weight.sum() if self.reduction == "mean" else slope
