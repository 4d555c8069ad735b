"""The cheap mode: the norm of the input gradient counts as a constant."""

from __future__ import annotations

from dataclasses import dataclass

from margin_ext.gradient_mode import GradientMode, register_gradient_mode
from margin_ext.gradient_modes.check_report import Measured
from margin_ext.gradient_modes.step import Step
from margin_ext.op_results import MarginLoss

__all__ = ["Detached"]


@dataclass(frozen=True)
class Detached(GradientMode):
    """The loss, with a gradient that moves the gaps only.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss(gradient="detached").gradient
        Detached()
    """

    def __call__(self, step: Step) -> MarginLoss:
        """See :class:`GradientMode`."""
        nearest = step.nearest()
        return step.loss(step.input_gradient(nearest, create_graph=False), nearest)

    def explain(self, measured: Measured) -> tuple[str, str]:
        """See :class:`GradientMode`."""
        return "approximates", (
            "This is how the mode is meant: it leaves out how the parameters move the gradient "
            "norm, which is what the regularizer's gradient is off by here "
            f"({measured.margin_error:.2g} of it)."
        )


register_gradient_mode("detached", Detached)
