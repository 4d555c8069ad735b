"""What a gradient check found, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from margin_ext.gradient_mode import GradientMode

__all__ = ["GradientCheck", "Measured", "conclude"]


@dataclass(frozen=True)
class GradientCheck:
    """The comparison of a mode's parameter gradient with numeric derivatives; print it.

    Attributes:
        verdict: "agrees"; "approximates": differs as the mode does by design; "wrong"; or
            "unknown": there was nothing to compare with.
        margin_error: Error of the regularizer's part of the gradient, relative to that part; NaN
            where it was not compared.
        cross_entropy_error: The same of the cross-entropy's part.
        findings: Sentences that say what was seen, and what to do about it.

    Example:
        >>> print(GradientCheck("agrees", 1e-4, 1e-7, ("The regularizer's gradient agrees.",)))
        gradient check: agrees (regularizer's part off by 0.0001, cross-entropy's by 1e-07)
        - The regularizer's gradient agrees.
    """

    verdict: str
    margin_error: float
    cross_entropy_error: float
    findings: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the gradient is that of the loss."""
        return self.verdict == "agrees"

    def __str__(self) -> str:
        lines = [
            f"gradient check: {self.verdict} (regularizer's part off by {self.margin_error:.2g}, "
            f"cross-entropy's by {self.cross_entropy_error:.2g})"
        ]
        lines += [f"- {finding}" for finding in self.findings]
        return "\n".join(lines)


@dataclass(frozen=True)
class Measured:
    """What the comparison measured.

    Attributes:
        margin_error: As in the report.
        cross_entropy_error: As in the report.
        size: The regularizer's derivative along a random direction, root mean square.
        tolerance: The largest error that the comparison's precision explains.
        functions: Names of Python autograd functions in the model.
        kinked: Whether the model has layers that are piecewise linear.
        error_of: The margin's error by another mode; NaN in low precision.
    """

    margin_error: float
    cross_entropy_error: float
    size: float
    tolerance: float
    functions: list[str]
    kinked: bool
    error_of: Callable[[GradientMode], float]


def conclude(mode: GradientMode, measured: Measured, findings: list[str]) -> GradientCheck:
    """The report; ``findings`` are what was noticed on the way."""
    verdict, words = _before_margins(measured) or _of_margins(mode, measured)
    margin_error = math.nan if verdict == "unknown" else measured.margin_error
    return GradientCheck(verdict, margin_error, measured.cross_entropy_error, (*findings, words))


def _before_margins(m: Measured) -> tuple[str, str] | None:
    if not math.isfinite(m.margin_error + m.cross_entropy_error):
        return "wrong", "The loss or its gradient is not finite."
    if m.cross_entropy_error > m.tolerance:
        return "wrong", (
            f"The gradient of the cross-entropy alone is off by {m.cross_entropy_error:.2g}, "
            "before margins come in: the model's own backward is not the derivative of its "
            "forward (a custom function, a compiled graph, a detached part)."
        )
    if m.size == 0:
        return "unknown", (
            "No sample of this batch has a margin where the regularizer has a slope (the ramp is "
            "flat on misclassified samples and from tau on): there is no gradient to compare. "
            "Check on other samples, or after some training."
        )
    return None


def _of_margins(mode: GradientMode, m: Measured) -> tuple[str, str]:
    if m.margin_error <= m.tolerance:
        return "agrees", f"The regularizer's gradient agrees within {m.tolerance:g}."
    return mode.explain(m)
