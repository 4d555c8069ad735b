"""What a gradient check found, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from margin_ext.gradient_modes.finite_difference import FiniteDifference

__all__ = ["GradientCheck", "Measured", "conclude"]


@dataclass(frozen=True)
class GradientCheck:
    """The comparison of a mode's parameter gradient with numeric derivatives; print it.

    Attributes:
        verdict: "agrees"; "approximates": differs as the mode does by design; "wrong"; or
            "unknown": there was nothing to compare with.
        margin_error: Of the regularizer's part of the gradient, relative to that part; NaN where
            it was not compared.
        cross_entropy_error: The same of the cross-entropy's part.
        findings: Sentences that say what was seen, and what to do about it.
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
        mode: The name of the mode.
        difference: Its settings, where it is finite_difference.
        margin_error: As in the report.
        cross_entropy_error: As in the report.
        size: The regularizer's derivative along a random direction, root mean square.
        tolerance: The largest error that the comparison's precision explains.
        functions: Names of Python autograd functions in the model.
        kinked: Whether the model has layers that are piecewise linear.
        short_step_error: The margin's error with a far shorter central step; NaN: not measured.
    """

    mode: str
    difference: FiniteDifference
    margin_error: float
    cross_entropy_error: float
    size: float
    tolerance: float
    functions: list[str]
    kinked: bool
    short_step_error: float


def conclude(measured: Measured, findings: list[str]) -> GradientCheck:
    """The report; ``findings`` are what was noticed on the way."""
    verdict, words = _before_margins(measured) or _of_margins(measured)
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


def _of_margins(m: Measured) -> tuple[str, str]:
    if m.margin_error <= m.tolerance:
        return "agrees", f"The regularizer's gradient agrees within {m.tolerance:g}."
    if m.mode == "detached":
        return "approximates", (
            "This is how the mode is meant: it leaves out how the parameters move the gradient "
            f"norm, which is what the regularizer's gradient is off by here ({m.margin_error:.2g} "
            "of it)."
        )
    if m.mode == "finite_difference":
        return "approximates", _about_the_step(m)
    named = f" It has {', '.join(m.functions)}." if m.functions else ""
    return "wrong", (
        f"The regularizer's gradient is off by {m.margin_error:.2g}, without an error: something "
        "between inputs and logits drops out of the second derivative, most likely a custom "
        f"function whose backward is not differentiable, or a compiled graph.{named} Use "
        'gradient="finite_difference", which needs no second derivative.'
    )


def _about_the_step(m: Measured) -> str:
    words = (
        f"{m.difference} measures the slope over its step, which is off from the slope at the "
        f"input by {m.margin_error:.2g} of the regularizer's gradient. "
    )
    if m.kinked:
        return words + (
            "That is expected here: a piecewise linear network's gradient knows only the piece "
            "that the input lies in, and the step reaches over many."
        )
    if math.isnan(m.short_step_error):
        return words + "In low precision that may be rounding: try a longer step."
    if m.short_step_error < m.margin_error / 2:
        return words + (
            f"With a central step a thousandth as long it is off by {m.short_step_error:.2g}, so "
            "it is the length of the step: shorten it if you want the exact gradient."
        )
    return words + (
        f"A central step a thousandth as long is off by {m.short_step_error:.2g} too: is the "
        "network smooth, and does it give the same output for the same input?"
    )
