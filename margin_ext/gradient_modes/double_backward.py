"""The exact mode: the input gradient keeps its graph, and the loss is differentiated through it."""

from __future__ import annotations

from dataclasses import dataclass

from margin_ext.gradient_mode import GradientMode, register_gradient_mode
from margin_ext.gradient_modes.check_report import Measured
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step
from margin_ext.op_results import MarginLoss

__all__ = ["DoubleBackward"]


@dataclass(frozen=True)
class DoubleBackward(GradientMode):
    """The loss with its exact gradient; the model must be twice differentiable.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss().gradient
        DoubleBackward()
    """

    @property
    def advice(self) -> str:
        """See :class:`GradientMode`."""
        return '. Use gradient="finite_difference", or "auto", which finds this out'

    def __call__(self, step: Step) -> MarginLoss:
        """See :class:`GradientMode`."""
        with sharding_suspended(step.model):
            nearest = step.nearest()
            grad = step.input_gradient(nearest, create_graph=True)
        return step.loss(grad, nearest)

    def explain(self, measured: Measured) -> tuple[str, str]:
        """See :class:`GradientMode`."""
        functions = measured.functions
        named = f" It has {', '.join(functions)}." if functions else ""
        return "wrong", (
            f"The regularizer's gradient is off by {measured.margin_error:.2g}, without an error: "
            "something between inputs and logits drops out of the second derivative, most likely "
            f"a custom function whose backward is not differentiable, or a compiled graph.{named} "
            'Use gradient="finite_difference", which needs no second derivative.'
        )


register_gradient_mode("double_backward", DoubleBackward)
