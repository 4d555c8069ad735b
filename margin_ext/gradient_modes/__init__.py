"""Where the gradient of the gradient norm comes from: the modes, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes.automatic import Automatic
from margin_ext.gradient_modes.check_report import GradientCheck
from margin_ext.gradient_modes.detached import detached
from margin_ext.gradient_modes.double_backward import double_backward
from margin_ext.gradient_modes.finite_difference import FiniteDifference, finite_difference
from margin_ext.gradient_modes.gradient_check import check_gradient
from margin_ext.gradient_modes.hidden_layers import layered_loss
from margin_ext.gradient_modes.layer_state import BATCHNORM_POLICIES
from margin_ext.gradient_modes.margin_pass import Passes, run_step
from margin_ext.gradient_modes.model_call import joined_call
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.sample_objective import SampleObjective
from margin_ext.gradient_modes.secant import Secant, secant_loss
from margin_ext.gradient_modes.step import Step

__all__ = [
    "BATCHNORM_POLICIES",
    "GRADIENT_MODES",
    "FiniteDifference",
    "GradientCheck",
    "Mode",
    "Objective",
    "Passes",
    "SampleObjective",
    "Secant",
    "Step",
    "check_gradient",
    "joined_call",
    "layered_loss",
    "make_mode",
    "run_step",
    "secant_loss",
]

Mode = Callable[[Step], MarginLoss]

# double_backward: exact; the model must be twice differentiable.
# finite_difference: more passes at shifted inputs; asks nothing of the model.
# detached: the norm is a constant, so that the regularizer moves the gap only.
# auto: double_backward where it works, else finite_difference, with a warning.
GRADIENT_MODES: Final = ("double_backward", "finite_difference", "detached", "auto")


def make_mode(name: str, settings: FiniteDifference) -> Mode:
    """The mode of a name; settings are those of the finite differences, where it makes any."""
    # Not lambdas: a criterion can be pickled.
    table: dict[str, Mode] = {
        "double_backward": double_backward,
        "finite_difference": partial(finite_difference, settings=settings),
        "detached": detached,
        "auto": partial(Automatic(), settings=settings),
    }
    return table[name]
