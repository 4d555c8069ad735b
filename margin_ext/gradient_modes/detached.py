"""The cheap mode: the norm of the input gradient counts as a constant."""

from __future__ import annotations

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.step import Step

__all__ = ["detached"]


def detached(step: Step) -> MarginLoss:
    """The loss, with a gradient that moves the gaps only."""
    objective = step.objective
    critical = objective.critical(step.logits, step.inputs, step.target)
    grad = objective.input_gradient(
        step.logits, step.inputs, step.target, critical, create_graph=False
    )
    return objective.loss(step.logits, step.target, grad, critical)
