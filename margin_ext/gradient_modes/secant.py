"""The secant margin: what the gap loses on the way to an attack's point, in place of a tangent.

A tangent can be fooled: trained on, a network's gradient at the inputs tells less and less of the
way to the boundary (docs/results.md). The secant looks where an attack has gone. With a and a' the
gaps at the input and at the attack's point, h the distance between them, it falls by
s = (a - a') / h per unit, and the margin is a / s: where the straight way there would cross the
boundary if the gap fell evenly. On a linear classifier that is the exact distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.step import Step
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["Secant", "secant_loss"]

# Several steps may turn; together they reach farther than the radius.
_REACH = 2.5


@dataclass(frozen=True)
class Secant:
    """How far and in how many steps the attack goes.

    Attributes:
        steps: Each takes one pass forward and one backward to the inputs. One step goes straight to
            the radius; several take 2.5 / steps of it each, and stay within it.
        radius: The l_p length, in units of the loss's tau. A boundary beyond it is not seen.
        data_range: Lowest and highest input, as the model gets it: the attack stays inside.
    """

    steps: int = 2
    radius: float = 1.0
    data_range: DataRange | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")
        if self.data_range is not None:
            low, high = (torch.as_tensor(end) for end in self.data_range)
            if bool((low >= high).any()):
                raise ValueError(f"data_range must be (lowest, highest), got {self.data_range}")

    def check_tau(self, tau: float) -> None:
        """Refuse a tau that makes no radius."""
        if not 0 < tau < math.inf:
            raise ValueError(f'margin="secant" needs a tau above 0 and finite, got {tau}')


def secant_loss(step: Step, settings: Secant) -> MarginLoss:
    """The loss with secant margins; ``norm`` is the slope of the secant.

    The attack's points count as constants; both gaps on the secant are differentiated.

    Raises:
        ValueError: The model is not known.
    """
    if step.rerun is None:
        raise ValueError(
            'margin="secant" runs the model at attacked inputs: call '
            "criterion.run(model, inputs, target) in place of criterion(logits, target, inputs)"
        )
    objective, target = step.objective, step.target
    critical = objective.critical(step.logits, step.inputs, target)
    threat = ThreatModel(
        p=float(objective.p), data_range=settings.data_range, input_std=objective.input_std
    )
    moved = _attacked(step, settings, threat, critical)
    nearest = replace(objective, classes="runner_up")
    logits = step.rerun(moved)
    there = nearest.gap(logits, target, nearest.critical(logits, moved, target))
    here = objective.gap(step.logits, target, critical)
    center = step.inputs.detach()
    distance = threat.distance(moved, center).to(here.dtype)
    fall = here - there
    # No way gone, or gaps of masked classes and ignored samples: no slope.
    known = (distance > 0) & fall.isfinite()
    slope = torch.where(known, fall, 0.0) / torch.where(known, distance, 1.0)
    # A vector of one element has this for its norm, whatever the norm; it is in the right unit.
    as_gradient = slope.clamp_min(0).unsqueeze(1)
    return replace(objective, input_std=None).loss(step.logits, target, as_gradient, critical)


def _attacked(step: Step, settings: Secant, threat: ThreatModel, critical: object) -> Tensor:
    """The attack's points, [B, ...] without a graph."""
    objective, target = step.objective, step.target
    assert step.rerun is not None
    center = step.inputs.detach()
    radius = center.new_full(center.shape[:1], settings.radius * objective.tau, dtype=torch.float32)
    length = radius if settings.steps == 1 else radius * (_REACH / settings.steps)
    nearest = replace(objective, classes="runner_up")
    inputs, logits = step.inputs, step.logits
    for index in range(settings.steps):
        if index > 0:
            inputs = inputs.requires_grad_()
            logits = step.rerun(inputs)
            critical = nearest.critical(logits, inputs, target)
        grad = objective.input_gradient(logits, inputs, target, critical, create_graph=False)
        moved = threat.step(grad, -length, inputs.detach())
        inputs = threat.project(moved, center, radius).to(center.dtype)
    return inputs
