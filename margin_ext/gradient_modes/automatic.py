"""The mode that finds out: double backward where the model can do it, else finite differences."""

from __future__ import annotations

import warnings
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.double_backward import double_backward
from margin_ext.gradient_modes.finite_difference import FiniteDifference, finite_difference
from margin_ext.gradient_modes.graph_leaves import graph_leaves
from margin_ext.gradient_modes.parallel import sharding_suspended
from margin_ext.gradient_modes.step import Step

__all__ = ["Automatic"]

# Frames between the warning and the line that called AverageMarginLoss.run.
_USERS_LINE: Final = 5


class Automatic:
    """Tries double backward on the first batch of each model, and remembers what it found.

    A model is tried anew where it changes between training and eval mode. The trial goes
    backward through all the second derivatives that the step will need, since most models that lack
    one raise only there.
    """

    def __init__(self) -> None:
        self._works: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
        self._warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy finds out for itself: what was found belongs to models that are not copied."""
        return type(self), ()

    def __call__(self, step: Step, settings: FiniteDifference) -> MarginLoss:
        """The loss, by the mode that works for this model."""
        if step.rerun is None or step.model is None:
            return double_backward(step)
        found = self._works.setdefault(step.model, {})
        training = step.model.training
        if training not in found:
            try:
                out = double_backward(step)
                _try_backward(out.loss, step)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                found[training] = False
                self._warn(error)
            else:
                found[training] = True
                return out
        if found[training]:
            return double_backward(step)
        return finite_difference(step, settings)

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
    parameters = set() if step.model is None else {id(p) for p in step.model.parameters()}
    # Beside the inputs, the leaves that autograd puts behind what it cannot differentiate: only a
    # path that leads to a leaf asked for is walked.
    leaves = [leaf for leaf in graph_leaves(loss) if id(leaf) not in parameters]
    with sharding_suspended(step.model):
        torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)
