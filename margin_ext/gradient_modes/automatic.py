"""The mode that finds out: double backward where the model can do it, else finite differences."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.double_backward import double_backward
from margin_ext.gradient_modes.finite_difference import FiniteDifference, finite_difference
from margin_ext.gradient_modes.step import Step

__all__ = ["Automatic"]


class Automatic:
    """Tries double backward on the first batch of each model, and remembers what it found.

    A model is tried anew where it changes between training and eval mode. The trial differentiates
    the loss by the inputs, through all the second derivatives that the step will need; most models
    that lack one raise only there.
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
                if out.loss.requires_grad:
                    torch.autograd.grad(
                        out.loss.sum(), step.inputs, retain_graph=True, allow_unused=True
                    )
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
            stacklevel=6,
        )
