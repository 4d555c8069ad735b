"""The mode without second derivatives: one or two more passes at shifted inputs.

The norm of the input gradient enters the loss through ||g||_q = v . g, and its derivative by the
parameters is that of v . g with v held constant (envelope theorem): the derivative of a
directional derivative of the gap, which a difference of gaps along v stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.functional.labels import Labels
from margin_ext.gradient_mode import GradientMode, register_gradient_mode
from margin_ext.gradient_modes.check_report import Measured
from margin_ext.gradient_modes.domain import has_nan, refuse_nan, threat_in_range
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.step import Step
from margin_ext.input_std import channel_scale
from margin_ext.loss_options import LossOptions
from margin_ext.loss_settings import check_word
from margin_ext.op_results import MarginLoss
from margin_ext.threat import DataRange, ThreatModel, check_data_range

__all__ = ["FiniteDifference"]

# v leads away from the boundary. Where the passes go along it, in steps, and the factor of their
# gaps; the gap of the base pass has the factor that makes the sum 0.
_PASSES: Final = {
    "backward": {-1.0: -1.0},
    "forward": {1.0: 1.0},
    "central": {1.0: 0.5, -1.0: -0.5},
}
_RENAMED: Final = {"toward": "backward", "away": "forward"}

Scheme = Literal["backward", "forward", "central"]
Unit = Literal["margin", "tau", "inputs", "absolute"]

# Of tau: a step of a sample's margin is at least this long, so that rounding does not drown the
# difference of gaps that are close to each other.
_LEAST: Final = 1 / 20


@dataclass(frozen=True)
class FiniteDifference(GradientMode):
    """A difference of gaps along the direction v of the norm, which leads away from the boundary.

    Attributes:
        scheme: "backward", gap(x) - gap(x - h v), steps from the input toward the decision
            boundary; "forward", gap(x + h v) - gap(x), away from it (one more pass each);
            "central" does both (two more passes).
        step: The l_p length h of the step, in ``unit``.
        unit: "margin": each sample's own first-order margin; the step, multiplied by ``step``, is
            held between a twentieth of tau and tau. A step of 1 ends where the tangent meets the
            boundary, and the margin's gradient becomes that of the gap there, divided by the norm
            (envelope theorem; MMA training, Ding et al., arXiv 1812.02637). Samples keep their own
            steps under BatchNorm too, and the dependence between samples is then not folded in.
            "tau": the tau of the loss. "inputs": the spread of the batch, which is the standard
            deviation of its elements times the l_p norm of a vector of ones; it differs between
            batches, and so between the ranks of a distributed run. "absolute": the unit of the
            margin. All are in pixel units where the loss has ``input_std``.
        deferred: Make the passes in ``backward()``, when the graph of the step's own pass is gone:
            a step then holds as much memory as one pass, where otherwise it holds two or three.
            Turn it off to differentiate the loss twice; where the model keeps a part of its graph
            from one pass to the next; to sum losses of several calls before
            ``backward()`` while layers change their buffers in between; where the model depends on
            a context that has been left by then, other than autocast; and where
            DistributedDataParallel should send gradients while others are computed, for these
            passes give all of theirs at the end. Functions, ``call=``, fully_shard,
            find_unused_parameters and parameters with hooks turn it off.
        data_range: Lowest and highest input, as the model gets it. Moved inputs are brought inside,
            and a difference is divided by the way that was left; samples without any have none.

    Raises:
        ValueError: A setting makes no step.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> criterion = AverageMarginLoss(gradient=FiniteDifference("central", unit="tau"))
        >>> criterion.gradient.reruns
        2
    """

    scheme: Scheme = "backward"
    step: float = 1.0
    unit: Unit = "margin"
    deferred: bool = True
    data_range: DataRange | None = None

    def __post_init__(self) -> None:
        if self.scheme in _RENAMED:
            raise ValueError(f'scheme "{self.scheme}" is now called "{_RENAMED[self.scheme]}"')
        check_word("scheme", self.scheme, Scheme)
        check_word("unit", self.unit, Unit)
        if not (self.step > 0 and math.isfinite(self.step)):
            raise ValueError(f"step must be above 0 and finite, got {self.step}")
        if self.data_range is not None:
            check_data_range(self.data_range)

    @property
    def reruns(self) -> int:
        """See :class:`GradientMode`."""
        return len(_PASSES[self.scheme])

    @property
    def asks_dependence(self) -> bool:
        """See :class:`GradientMode`."""
        return self.unit != "margin"

    def check(self, options: LossOptions) -> None:
        """See :class:`GradientMode`."""
        if self.unit in ("margin", "tau"):
            options.check_length(
                f'finite differences with unit="{self.unit}" step by',
                ': take FiniteDifference(unit="absolute", step=...)',
            )

    def __call__(self, step: Step) -> MarginLoss:
        """The loss, with a gradient in which a difference of gaps stands for the norm's.

        The value is exact. The class that each gap is measured to is that of the base pass.

        Raises:
            ValueError: The model is not known, or samples depend on each other and reduction is
                "none".
        """
        objective, labels = step.objective, step.labels
        rerun = step.needs_model('gradient="finite_difference"', "shifted")
        nearest = step.nearest()
        grad = step.input_gradient(nearest, create_graph=False)
        out = step.loss(grad, nearest)
        slope = objective.norm_slope(out, labels)
        length = self.length(step, out.margin)
        if step.batch_dependent and self.unit != "margin":
            if objective.per_sample:
                raise ValueError(
                    'gradient="finite_difference" cannot serve reduction="none" while BatchNorm, '
                    "or another layer, makes samples depend on each other: the weights of the "
                    'samples must be known before the second pass. Use reduction="mean" or "sum", '
                    'batchnorm="running", or steps of FiniteDifference(unit="margin")'
                )
            if self.data_range is not None:
                raise ValueError(
                    "FiniteDifference(data_range=...) shortens the steps of single samples, which "
                    "changes the direction of the whole batch while samples depend on each other "
                    'by BatchNorm or other layers: take unit="margin" or batchnorm="running"'
                )
            shift, weight = _joint(slope, length)
        else:
            shift, weight = _separate(slope, out.gap, length)
        options = objective.options
        threat = threat_in_range(options, self.data_range, step.inputs)
        defined = not any(has_nan(t, validate=options.validate) for t in (step.logits, out.loss))
        terms = _Terms(
            objective, labels, nearest, rerun, step.inputs, grad, shift, weight, threat, defined
        )
        passes = _PASSES[self.scheme]
        factors = {side: factor * terms.per_way(side) for side, factor in passes.items()}
        jobs = [partial(terms.moved, side, factor) for side, factor in factors.items()]
        total: Tensor | float = 0.0
        at_base = -sum(factors.values())
        if isinstance(at_base, Tensor) or at_base != 0:
            total = terms.at(step.logits, at_base)
        if step.deferred is not None and step.deferred.serves(step.logits):
            total = total + step.deferred.add(jobs, refuse_nan=defined)
        else:
            for job in jobs:
                total = total + job()
        assert isinstance(total, Tensor)
        # Its value is 0: only its gradient is wanted.
        nothing = total - total.detach()
        if objective.per_sample:
            nothing = labels.spread(nothing)
        return out._replace(loss=out.loss + nothing.to(out.loss.dtype))

    def explain(self, measured: Measured) -> tuple[str, str]:
        """See :class:`GradientMode`."""
        words = (
            f"{self} measures the slope over its step, which is off from the slope at the "
            f"input by {measured.margin_error:.2g} of the regularizer's gradient. "
        )
        if measured.kinked:
            return "approximates", words + (
                "That is expected here: the gradient of a piecewise linear network knows only the "
                "piece that the input lies in, and the step reaches over many."
            )
        short = measured.error_of(replace(self, scheme="central", step=self.step / 1000))
        if math.isnan(short):
            words += "In low precision that may be rounding: try a longer step."
        elif short < measured.margin_error / 2:
            words += (
                f"With a central step a thousandth as long it is off by {short:.2g}, so "
                "it is the length of the step: shorten it if you want the exact gradient."
            )
        else:
            words += (
                f"A central step a thousandth as long is off by {short:.2g} too: is the "
                "network smooth, and does it give the same output for the same input?"
            )
        return "approximates", words

    def length(self, step: Step, margin: Tensor) -> float | Tensor:
        """The step in the unit of the margin: one for all, or [B]."""
        tau = step.objective.options.tau
        if self.unit == "margin":
            own = torch.where(margin.isnan(), 0.0, self.step * margin.abs())
            return own.clamp(_LEAST * tau, tau)
        if self.unit == "absolute":
            return self.step
        if self.unit == "tau":
            return self.step * tau
        return self.step * _spread(step)


def _spread(step: Step) -> Tensor:
    inputs = step.inputs.detach().to(accumulation_dtype(step.inputs))
    options = step.objective.options
    if options.input_std is not None:
        inputs = inputs / channel_scale(options.input_std, inputs)
    deviation = (inputs - inputs.mean()).square().mean().sqrt()
    ones = max(inputs.numel() // max(inputs.shape[0], 1), 1) ** (1 / float(options.p))
    spread: Tensor = torch.where(deviation > 0, deviation, 1.0) * ones
    return spread


@dataclass(frozen=True)
class _Terms:
    """The parts of the difference, each a weighted gap, as they are added to the loss.

    Passes that wait for the backward hold this, so the logits are not in it.
    """

    objective: Objective
    labels: Labels
    nearest: Any
    rerun: Callable[[Tensor], Tensor]
    inputs: Tensor
    grad: Tensor
    shift: Tensor
    weight: Tensor
    threat: ThreatModel
    base_is_defined: bool

    def at(self, logits: Tensor, factor: float | Tensor) -> Tensor:
        gap = self.labels.gap(logits, self.nearest)
        # An infinite gap, that of masked classes, has no slope, and its value would come to NaN.
        valid = self.labels.counted() & ~gap.isinf()
        term = torch.where(valid, factor * self.weight * gap, 0.0)
        return term if self.objective.per_sample else term.sum()

    def moved(self, side: float, factor: float | Tensor) -> Tensor:
        logits = self.rerun(self._point(side, self.threat))
        if self.base_is_defined:
            refuse_nan(logits, "FiniteDifference", validate=self.objective.options.validate)
        return self.at(logits, factor)

    def per_way(self, side: float) -> float | Tensor:
        """What multiplies a difference whose step was cut short by the data range [B]."""
        if self.threat.data_range is None:
            return 1.0
        point = self._point(side, self.threat.without_range())
        inside = self.threat.clamp(point)
        cut = (point != inside).flatten(1).any(1)
        way = self.threat.distance(inside, self.inputs.detach()).to(self.shift.dtype)
        lengthened = self.shift.abs() / torch.where(way > 0, way, math.inf)
        return torch.where(cut, lengthened, 1.0)

    def _point(self, side: float, threat: ThreatModel) -> Tensor:
        return threat.attack_step(self.inputs.detach(), self.grad, side * self.shift)


def _separate(slope: Tensor, gap: Tensor, length: float | Tensor) -> tuple[Tensor, Tensor]:
    """Every sample makes a step of the whole length, and its difference is weighted.

    Returns:
        The shift along v that leads away from the boundary [B], and the weight [B].
    """
    away = torch.where(gap < 0, -1.0, 1.0).to(slope.dtype)
    return away * length, slope * away / length


def _joint(slope: Tensor, length: float | Tensor) -> tuple[Tensor, Tensor]:
    """The weights are folded into the direction: the sample with the largest one steps farthest.

    Where samples depend on each other, shifting one changes the gaps of all, and only the
    difference of the plain sum of the gaps along the weighted direction has the right derivative.
    The slopes have the sign of the gap, so that +1 leads away from the boundary here too.
    """
    largest = slope.abs().amax() if slope.numel() else slope.sum()
    unit = slope / torch.where(largest > 0, largest, 1.0)
    return unit * length, largest / length


register_gradient_mode("finite_difference", FiniteDifference)
