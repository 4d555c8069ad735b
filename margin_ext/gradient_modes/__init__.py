"""How the gradient of the gradient norm is computed: the modes, one a file.

A mode of your own is a class in one file, with ``register_gradient_mode`` where it should have a
word; docs/gradient-modes.md says what it gets to work with.
"""

from __future__ import annotations

from margin_ext.gradient_mode import (
    GradientMode,
    gradient_mode,
    gradient_mode_names,
    register_gradient_mode,
)
from margin_ext.gradient_modes.additive import Additive
from margin_ext.gradient_modes.auto import Auto
from margin_ext.gradient_modes.check_report import GradientCheck
from margin_ext.gradient_modes.detached import Detached
from margin_ext.gradient_modes.distance import Distance
from margin_ext.gradient_modes.double_backward import DoubleBackward
from margin_ext.gradient_modes.finite_difference import FiniteDifference
from margin_ext.gradient_modes.secant import Secant
from margin_ext.gradient_modes.step import Step

__all__ = [
    "Additive",
    "Auto",
    "Detached",
    "Distance",
    "DoubleBackward",
    "FiniteDifference",
    "GradientCheck",
    "GradientMode",
    "Secant",
    "Step",
    "gradient_mode",
    "gradient_mode_names",
    "register_gradient_mode",
]
