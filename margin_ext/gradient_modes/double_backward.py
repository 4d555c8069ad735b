"""The exact mode: the input gradient keeps its graph, and the loss is differentiated through it."""

from __future__ import annotations

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step

__all__ = ["double_backward"]


def double_backward(step: Step) -> MarginLoss:
    """The loss with its exact gradient; the model must be twice differentiable."""
    objective = step.objective
    with sharding_suspended(step.model):
        critical = objective.critical(step.logits, step.inputs, step.target)
        grad = objective.input_gradient(
            step.logits, step.inputs, step.target, critical, create_graph=True
        )
    return objective.loss(step.logits, step.target, grad, critical)
