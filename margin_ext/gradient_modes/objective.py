"""What is minimised, whatever the input gradient comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from margin_ext.functional.additive_margin_loss import additive_loss
from margin_ext.functional.labels import ClassLabels, Labels, labels_of
from margin_ext.input_gradient import gradient_by_inputs, nearest_class
from margin_ext.loss_options import LossOptions
from margin_ext.op_results import MarginLoss
from margin_ext.target_kinds import checked_target

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """The loss of a step, and what gradient modes ask of it.

    Attributes:
        options: Those of the criterion, with the mu of this step.
        normalizer: The divisor of the sum over the samples; None: as ``options.reduction`` says,
            which is otherwise "sum".
    """

    options: LossOptions
    normalizer: float | Tensor | None = None

    @property
    def per_sample(self) -> bool:
        """Whether samples (positions) keep a loss each."""
        return self.options.reduction == "none"

    def with_options(self, **changes: Any) -> Objective:
        """The same with other options."""
        return replace(self, options=replace(self.options, **changes))

    def labels(self, logits: Tensor, target: Tensor) -> Labels:
        """The target as labels of its kind.

        Raises:
            TypeError, ValueError: It is of no kind that has margins, or a search over classes is
                asked of several positions or of probabilities.
        """
        o = self.options
        target = checked_target(logits, target)
        labels = labels_of(logits, target, o.weight, o.ignore_index, o.aggregation, o.validate)
        if not labels.single and o.classes != "runner_up":
            raise ValueError(
                "dense logits and soft targets have their margins to the runner-up: "
                f'classes must be "runner_up", got {o.classes!r}'
            )
        return labels

    def loss(self, logits: Tensor, labels: Labels, grad: Tensor | None, nearest: Any) -> MarginLoss:
        """The loss of logits and input gradients grad [B, ...], differentiable in both."""
        return self._normalized(labels.loss(logits, grad, nearest, self.options))

    def loss_of(
        self,
        logits: Tensor,
        labels: Labels,
        *,
        margin: Tensor,
        gap: Tensor,
        norm: Tensor,
        term: Tensor | None = None,
    ) -> MarginLoss:
        """The loss of margins [B] that are known, differentiable in them.

        Args:
            logits: [B, C] or [B, C, d1, ...].
            labels: The labels of the logits.
            margin: What the regularizer sees.
            gap: [B].
            norm: [B].
            term: What mu multiplies in place of the regularizer, one value a label, with the
                class weights; the margin is then only reported.
        """
        out = labels.loss_of(logits, margin, gap, norm, self.options, term)
        return self._normalized(out)

    def additive(self, logits: Tensor, labels: ClassLabels, grad: Tensor) -> MarginLoss:
        """The loss of the additive margin, with input gradients grad [B, ...] of the log-odds."""
        return self._normalized(additive_loss(labels, logits, grad, self.options.tau, self.options))

    def plain(self, logits: Tensor, labels: Labels) -> MarginLoss:
        """The loss without its regularizer, and each sample's gap."""
        return self._normalized(labels.plain_loss(logits, self.options))

    def _normalized(self, out: MarginLoss) -> MarginLoss:
        return out if self.normalizer is None else out._replace(loss=out.loss / self.normalizer)

    def cross_entropy(self, logits: Tensor, labels: Labels) -> Tensor:
        """The part of the loss without the regularizer, reduced as the loss is."""
        value = labels.cross_entropy(logits, self.options)
        return value if self.normalizer is None else value / self.normalizer

    def label_losses(self, logits: Tensor, labels: Labels) -> Tensor:
        """The cross-entropy of each label, with the class weights; 0 where ignored."""
        return labels.label_losses(logits, self.options)

    def nearest(self, logits: Tensor, inputs: Tensor, labels: Labels) -> Any:
        """What the gap of each sample is measured to: with class labels, its nearest class."""
        o = self.options
        if o.classes == "runner_up":
            return labels.nearest(logits)
        return nearest_class(logits, inputs, labels.target, o.classes, o)

    def input_gradient(
        self, logits: Tensor, inputs: Tensor, labels: Labels, nearest: Any, *, create_graph: bool
    ) -> Tensor:
        """Gradient of every sample's gap by its input, of the shape and type of inputs."""
        cotangent, scale = labels.gap_cotangent(logits.detach(), nearest)
        grad = gradient_by_inputs(logits, inputs, cotangent, create_graph=create_graph)
        return grad if scale is None else grad / scale

    def norm_slope(self, out: MarginLoss, labels: Labels) -> Tensor:
        """Derivative of the loss by each sample's gradient norm [B]; 0 for ignored samples.

        For reduction "none" that of each sample's own loss; of dense logits before the weights of
        its positions, which ``labels.spread`` multiplies by.
        """
        o = self.options
        # An infinite gap, that of masked classes, has the same margin under any norm.
        valid = labels.counted() & ~(out.gap.isinf() & ~out.norm.isnan())
        gap = torch.where(valid, out.gap, 0.0)
        with torch.enable_grad():
            norm = torch.where(valid, out.norm, 1.0).detach().requires_grad_()
            margin = gap / torch.where(norm <= o.eps, o.eps, norm)
            (slope,) = torch.autograd.grad(o.phi(margin).sum(), norm)
        slope = labels.weighted_slope(torch.where(valid, slope, 0.0), o.mu, self.per_sample)
        if self.normalizer is not None:
            return slope / self.normalizer
        if o.reduction == "mean":
            # Where no sample counts the total is 0.
            total = labels.total(labels.weight(slope.dtype))
            return torch.where(valid, slope / total, 0.0)
        return slope
