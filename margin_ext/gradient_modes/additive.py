"""The additive margin: the label's logit is lowered by what a step of tau could cost it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from margin_ext.functional import log_odds
from margin_ext.functional.labels import ClassLabels
from margin_ext.gradient_mode import GradientMode, register_margin
from margin_ext.gradient_modes.domain import threat_in_range
from margin_ext.gradient_modes.double_backward import DoubleBackward
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step
from margin_ext.input_gradient import gradient_by_inputs
from margin_ext.loss_options import LossOptions
from margin_ext.movable_inputs import require_movable
from margin_ext.op_results import MarginLoss
from margin_ext.threat import DataRange, check_data_range

__all__ = ["Additive"]


@dataclass(frozen=True)
class Additive(GradientMode):
    """Cross-entropy of logits whose label logit is lowered by tau times the gradient norm.

    The loss is CE(z) + mu * (CE(z') - CE(z)), with z'_y = z_y - tau ||grad_x a||_q and a the
    log-odds z_y - logsumexp of the others; with mu = 1 it is softplus(tau ||grad_x a||_q - a). No
    margin is divided by a norm, and there is no regularizer: samples far from the boundary count
    less and less, as in the cross-entropy. It takes the exact double backward, and class labels
    [B]. With a difference of two passes in place of the norm it would be adversarial training with
    one step, for which there is :class:`margin_ext.AdversarialTraining`.

    Attributes:
        noise: Radius of a ball, in units of tau. In training, ``run`` adds noise that is uniform in
            this ball to the inputs; logits and statistics are those at the noisy inputs.
        data_range: Lowest and highest input, as the model gets it: noisy inputs stay inside.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss(margin="additive", tau=0.5).margin
        Additive(noise=0.0, data_range=None)
    """

    noise: float = 0.0
    data_range: DataRange | None = None
    _exact: DoubleBackward = field(
        default_factory=DoubleBackward, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise must be at least 0 and finite, got {self.noise}")
        if self.data_range is not None:
            check_data_range(self.data_range)

    def without_noise(self) -> Additive:
        """See :class:`GradientMode`."""
        return replace(self, noise=0.0)

    def check(self, options: LossOptions) -> None:
        """See :class:`GradientMode`."""
        options.check_length('margin="additive" needs')
        options.refuse_regularizer('margin="additive"')
        if options.classes != "runner_up":
            raise ValueError(
                'margin="additive" takes all classes at once: leave out '
                f"classes={options.classes!r}"
            )

    def start(self, inputs: Tensor, options: LossOptions) -> Tensor:
        """The inputs with noise."""
        if not self.noise:
            return inputs
        given = require_movable(inputs)
        threat = threat_in_range(options, self.data_range, given)
        radius = given.new_full(given.shape[:1], self.noise * options.tau, dtype=torch.float32)
        return threat.noisy(given, radius)

    def __call__(self, step: Step) -> MarginLoss:
        """See :class:`GradientMode`.

        Raises:
            ValueError: Samples have no single class label.
        """
        labels = step.labels
        if not isinstance(labels, ClassLabels):
            step.nearest()  # says what is wrong with a target that is no labels at all
            raise ValueError(  # noqa: TRY004
                'margin="additive" takes one class label a sample, int64 [B]: one gradient norm '
                "does not say how far each position of dense logits, or each class of a target of "
                'probabilities, can fall. Take margin="first_order" or "distance"'
            )

        def take() -> Tensor:
            odds = log_odds(step.logits, labels.target, ignore_index=labels.ignore_index)
            total = torch.where(labels.counted(), odds, 0.0).sum()
            (cotangent,) = torch.autograd.grad(total, step.logits, create_graph=True)
            return gradient_by_inputs(step.logits, step.inputs, cotangent, create_graph=True)

        with sharding_suspended(step.modules):
            grad = self._exact.watched(step, take)
        return step.objective.additive(step.logits, labels, grad)


register_margin("additive", Additive)
