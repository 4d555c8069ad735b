"""The secant margin: what the gap loses on the way to an attack's point, in place of a tangent.

A tangent can be fooled: in a network that is trained on it, the gradient at the inputs tells less
and less of the way to the boundary (docs/results.md). The secant looks where an attack has gone.
With a and a' the gaps at the input and at the attack's point and h the distance between them, the
gap falls by s = (a - a') / h per unit, and the margin is a / s: where the straight way there would
cross the boundary if the gap fell evenly. On a linear classifier that is the exact distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from margin_ext.gradient_mode import GradientMode, register_margin
from margin_ext.gradient_modes.domain import has_nan, refuse_nan, threat_in_range
from margin_ext.gradient_modes.step import Step
from margin_ext.loss_options import LossOptions
from margin_ext.op_results import MarginLoss
from margin_ext.threat import DataRange, ThreatModel, check_data_range

__all__ = ["Secant"]

# Several steps may turn; together they reach farther than the radius.
_REACH = 2.5


@dataclass(frozen=True)
class Secant(GradientMode):
    """The margin along the way to the point that a short attack finds.

    Attributes:
        steps: Each takes one pass forward and one backward to the inputs. One step goes straight to
            the radius; several take 2.5 / steps of it each, and stay within it.
        radius: The l_p length, in units of the loss's tau. A boundary beyond it is not seen.
        data_range: Lowest and highest input, as the model gets it: the attack stays inside.

    Raises:
        ValueError: A setting makes no attack.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss(margin=Secant(data_range=(0, 1))).margin.reruns
        2
    """

    steps: int = 2
    radius: float = 1.0
    data_range: DataRange | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")
        if self.data_range is not None:
            check_data_range(self.data_range)

    @property
    def reruns(self) -> int:
        """See :class:`GradientMode`."""
        return self.steps

    def check(self, options: LossOptions) -> None:
        """See :class:`GradientMode`."""
        options.check_length('margin="secant" needs')

    def __call__(self, step: Step) -> MarginLoss:
        """The loss with secant margins; ``norm`` is the slope of the secant.

        The attack's points count as constants; both gaps on the secant are differentiated.

        Raises:
            ValueError: The model is not known.
        """
        rerun = step.needs_model('margin="secant"', "attacked")
        objective, labels = step.objective, step.labels
        nearest = step.nearest()
        options = objective.options
        threat = threat_in_range(options, self.data_range, step.inputs)
        moved = self._attacked(step, threat, nearest)
        runner_up = objective.with_options(classes="runner_up")
        logits = rerun(moved)
        if not has_nan(step.logits, validate=options.validate):
            refuse_nan(logits, "Secant", validate=options.validate)
        there = labels.gap(logits, runner_up.nearest(logits, moved, labels))
        here = labels.gap(step.logits, nearest)
        center = step.inputs.detach()
        distance = threat.distance(moved, center).to(here.dtype)
        fall = here - there
        # No way gone, or gaps of masked classes and ignored samples: no slope.
        known = (distance > 0) & fall.isfinite()
        slope = torch.where(known, fall, 0.0) / torch.where(known, distance, 1.0)
        # A vector of one element has this for its norm, whatever the norm; it is in the right unit.
        as_gradient = slope.clamp_min(0).unsqueeze(1)
        in_inputs = objective.with_options(input_std=None)
        return in_inputs.loss(step.logits, labels, as_gradient, nearest)

    def _attacked(self, step: Step, threat: ThreatModel, nearest: object) -> Tensor:
        """The attack's points, [B, ...] without a graph."""
        objective, labels = step.objective, step.labels
        assert step.rerun is not None
        center = step.inputs.detach()
        reach = self.radius * objective.options.tau
        radius = center.new_full(center.shape[:1], reach, dtype=torch.float32)
        length = radius if self.steps == 1 else radius * (_REACH / self.steps)
        runner_up = objective.with_options(classes="runner_up")
        inputs, logits = step.inputs, step.logits
        defined = not has_nan(logits, validate=objective.options.validate)
        for index in range(self.steps):
            if index > 0:
                inputs = inputs.requires_grad_()
                logits = step.rerun(inputs)
                if defined:
                    refuse_nan(logits, "Secant", validate=objective.options.validate)
                nearest = runner_up.nearest(logits, inputs, labels)
            grad = objective.input_gradient(logits, inputs, labels, nearest, create_graph=False)
            moved = threat.step(grad, -length, inputs.detach())
            inputs = threat.project(moved, center, radius).to(center.dtype)
        return inputs


register_margin("secant", Secant)
