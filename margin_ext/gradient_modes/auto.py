"""Double backward where the model can do it, otherwise finite differences."""

from __future__ import annotations

import warnings
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from margin_ext.gradient_mode import GradientMode, register_gradient_mode
from margin_ext.gradient_modes.check_report import Measured
from margin_ext.gradient_modes.double_backward import DoubleBackward
from margin_ext.gradient_modes.finite_difference import FiniteDifference
from margin_ext.gradient_modes.graph_leaves import graph_leaves
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step
from margin_ext.loss_options import LossOptions
from margin_ext.op_results import MarginLoss
from margin_ext.second_derivative import SecondDerivativeError

__all__ = ["Auto"]

# Frames between the warning and the line that called AverageMarginLoss.run.
_USERS_LINE: Final = 5


class Auto(GradientMode):
    """Tries double backward on the first batch of each model, and remembers the outcome.

    A model that changes between training and eval mode is tried again. The trial goes
    backward through all the second derivatives that the step will need, since most models that lack
    one raise only there. Where a later step finds that the graph of the input gradient is lost,
    because the model computes something else meanwhile, the fallback serves it from then on.

    Args:
        fallback: The mode of models that double backward does not serve.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> AverageMarginLoss(gradient=Auto(FiniteDifference("central"))).gradient.fallback.scheme
        'central'
    """

    def __init__(self, fallback: FiniteDifference | None = None) -> None:
        self.fallback = FiniteDifference() if fallback is None else fallback
        self._works: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
        self._warned = False
        self._exact = DoubleBackward()
        self._last: GradientMode = self._exact

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy finds out for itself: the outcomes belong to models that are not copied."""
        return type(self), (self.fallback,)

    def __repr__(self) -> str:
        return f"Auto({self.fallback!r})"

    @property
    def reruns(self) -> int:
        """See :class:`GradientMode`."""
        return self.fallback.reruns

    @property
    def deferred(self) -> bool:
        """See :class:`GradientMode`."""
        return self.fallback.deferred

    @property
    def asks_dependence(self) -> bool:
        """See :class:`GradientMode`."""
        return self.fallback.asks_dependence

    def check(self, options: LossOptions) -> None:
        """See :class:`GradientMode`."""
        self.fallback.check(options)

    def explain(self, measured: Measured) -> tuple[str, str]:
        """See :class:`GradientMode`; in the words of the mode that served the model."""
        return self._last.explain(measured)

    def __call__(self, step: Step) -> MarginLoss:
        """The loss, by the mode that works for this model."""
        if step.rerun is None or not step.modules:
            self._last = self._exact
            return self._exact(step)
        found = self._works.setdefault(step.modules[0], {})
        training = step.modules[0].training
        if found.get(training, True):
            try:
                out = self._exact(step)
                if training not in found:
                    _try_backward(out.loss, step)
            except torch.OutOfMemoryError:
                raise
            except SecondDerivativeError as error:
                found[training] = False
                self._warn(error)
            except (RuntimeError, NotImplementedError) as error:
                if training in found:  # it has worked before: this is something else
                    raise
                found[training] = False
                self._warn(error)
            else:
                found[training] = True
                self._last = self._exact
                return out
        self._last = self.fallback
        return self._last(step)

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        first_line = str(error).strip().split("\n")[0]
        warnings.warn(
            'AverageMarginLoss(gradient="auto") goes on with finite_difference, because double '
            f"backward fails on this model: {type(error).__name__}: {first_line}",
            RuntimeWarning,
            stacklevel=_USERS_LINE,
        )


def _try_backward(loss: Tensor, step: Step) -> None:
    """Go backward through the loss without leaving gradients anywhere."""
    if not loss.requires_grad:
        return
    parameters = {id(p) for module in step.modules for p in module.parameters(recurse=False)}
    # The inputs, and the leaves that autograd puts behind what it cannot differentiate: autograd
    # walks a path only where it leads to a leaf that is asked for.
    leaves = [leaf for leaf in graph_leaves(loss) if id(leaf) not in parameters]
    with sharding_suspended(step.modules):
        torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)


register_gradient_mode("auto", Auto)
