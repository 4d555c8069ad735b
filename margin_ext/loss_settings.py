"""What the settings of AverageMarginLoss may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from margin_ext.checks import check_loss_settings
from margin_ext.gradient_modes import BATCHNORM_POLICIES, GRADIENT_MODES
from margin_ext.norms import dual_exponent
from margin_ext.reference.margin_loss import REDUCTIONS
from margin_ext.reference.sample_gap import POSITIONS

__all__ = ["MARGINS", "check_settings"]

MARGINS: Final = ("first_order", "secant", "logit_gap")


def check_settings(
    *,
    p: float | str,
    mu: float,
    margin: str,
    gradient: str,
    classes: str | int,
    eps: float,
    label_smoothing: float,
    reduction: str,
    positions: str,
    fraction: float,
    every: int,
    warmup: int,
    batchnorm: str,
) -> None:
    """Raise ValueError with what was expected and what came."""
    dual_exponent(p)
    check_loss_settings(mu, eps, label_smoothing)
    _one_of("margin", margin, MARGINS)
    _one_of("gradient", gradient, GRADIENT_MODES)
    _one_of("reduction", reduction, REDUCTIONS)
    _one_of("positions", positions, POSITIONS)
    _one_of("batchnorm", batchnorm, BATCHNORM_POLICIES)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if not (isinstance(every, int) and every >= 1):
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    if not (isinstance(warmup, int) and warmup >= 0):
        raise ValueError(f"warmup must be a whole number of at least 0, got {warmup!r}")
    if not (classes in ("runner_up", "all") or (isinstance(classes, int) and classes >= 1)):
        raise ValueError(f'classes must be "runner_up", "all" or a number >= 1, got {classes!r}')


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
