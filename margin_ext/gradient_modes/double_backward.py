"""The exact mode: the input gradient keeps its graph, and the loss is differentiated through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from margin_ext.gradient_mode import GradientMode, register_gradient_mode
from margin_ext.gradient_modes.check_report import Measured
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step
from margin_ext.op_results import MarginLoss
from margin_ext.second_derivative import operations_watched, refuse_missing_derivatives

__all__ = ["DoubleBackward"]


class _Examined:
    """The models whose operations have been looked at, in the form that they had then."""

    def __init__(self) -> None:
        self._forms: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()
        self._without_model: set[Any] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy looks for itself: models are not copied with it."""
        return type(self), ()

    def is_new(self, step: Step) -> bool:
        """Whether the step's model has not been seen in this form; it counts as seen then."""
        form: tuple[Any, ...] = (step.logits.shape[1:], step.inputs.shape[1:])
        seen = self._without_model
        if step.modules:
            seen = self._forms.setdefault(step.modules[0], set())
            form += (hash(tuple((id(m), m.training) for m in step.modules)),)
        if form in seen:
            return False
        seen.add(form)
        return True


@dataclass(frozen=True)
class DoubleBackward(GradientMode):
    """The loss with its exact gradient; the model must be twice differentiable.

    Every step requires that the graph of the input gradient is not lost on the way. The first step
    of a model, and the first after its layers or their training flags have changed, also looks at
    each operation that torch did not write, and for operations without a second derivative.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss().gradient
        DoubleBackward()
    """

    _examined: _Examined = field(default_factory=_Examined, init=False, repr=False, compare=False)

    @property
    def advice(self) -> str:
        """See :class:`GradientMode`."""
        return '. Use gradient="finite_difference", or "auto", which finds this out'

    def __call__(self, step: Step) -> MarginLoss:
        """See :class:`GradientMode`."""
        with sharding_suspended(step.modules):
            nearest = step.nearest()
            grad = self.watched(step, lambda: step.input_gradient(nearest, create_graph=True))
        return step.loss(grad, nearest)

    def watched(self, step: Step, take: Callable[[], Tensor]) -> Tensor:
        """Take an input gradient with its graph, and see that nothing of the graph is lost."""
        if not self._examined.is_new(step):
            return take()
        with operations_watched(step.logits, step.inputs):
            grad = take()
        refuse_missing_derivatives(grad)
        return grad

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
