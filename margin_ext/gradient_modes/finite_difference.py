"""The mode without second derivatives: one or two more passes at shifted inputs.

The norm of the input gradient enters the loss through ||g||_q = v . g, and its derivative by the
parameters is that of v . g with v held constant (envelope theorem): the derivative of a
directional derivative of the gap, which a difference of gaps along v stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.functional import MarginLoss, dual_direction
from margin_ext.gradient_modes.objective import Critical, Objective
from margin_ext.gradient_modes.step import Step
from margin_ext.input_std import channel_scale

__all__ = ["FiniteDifference", "finite_difference"]

# Where the passes go, in steps away from the boundary, and what their gaps are multiplied by; the
# gap of the base pass takes what the factors lack to 0.
_SIDES: Final = {
    "toward": {-1.0: -1.0},
    "away": {1.0: 1.0},
    "central": {1.0: 0.5, -1.0: -0.5},
}
_UNITS: Final = ("margin", "tau", "inputs", "absolute")

# Of tau: a step of a sample's margin is at least this long, so that rounding does not drown the
# difference of gaps that are close to each other.
_LEAST: Final = 1 / 20


@dataclass(frozen=True)
class FiniteDifference:
    """How far and to which side finite differences step.

    Attributes:
        side: "toward" steps from the input toward the decision boundary, "away" to the other side
            (one more pass each); "central" does both (two more passes).
        step: The l_p length of the step, in ``unit``.
        unit: "margin": each sample's own first-order margin; the step, multiplied by ``step``, is
            held between a twentieth of tau and tau. A step of 1 ends where the tangent meets the
            boundary, and the margin's gradient becomes that of the gap there, divided by the norm
            (envelope theorem; MMA training, Ding et al. 2020). Samples keep their own steps under
            BatchNorm too, whose coupling is then not folded in. "tau": the tau of the loss.
            "inputs": the spread of the batch, which is the standard deviation of its elements times
            the l_p norm of a vector of ones; it differs between batches, and so between the ranks
            of a distributed run. "absolute": the unit of the margin. All are in pixel units where
            the loss has ``input_std``.
        deferred: Make the passes in ``backward()``, when the graph of the step's own pass is gone:
            a step then holds as much memory as one pass, where otherwise it holds two or three.
            Turn it off to differentiate the loss twice; where the model keeps a part of its graph
            from one pass to the next; to sum losses of several calls before
            ``backward()`` while layers change their buffers in between; where the model depends on
            a context that has been left by then, other than autocast; and where
            DistributedDataParallel should send gradients while others are computed, for these
            passes give all of theirs at the end. Functions, ``call=``, fully_shard,
            find_unused_parameters and parameters with hooks have it off.
    """

    side: str = "toward"
    step: float = 1.0
    unit: str = "margin"
    deferred: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that make no step."""
        if self.side not in _SIDES:
            raise ValueError(f"side must be one of {', '.join(_SIDES)}, got {self.side!r}")
        if self.unit not in _UNITS:
            raise ValueError(f"unit must be one of {', '.join(_UNITS)}, got {self.unit!r}")
        if not (self.step > 0 and math.isfinite(self.step)):
            raise ValueError(f"step must be above 0 and finite, got {self.step}")

    def check_tau(self, tau: float) -> None:
        """Refuse a tau that makes no length, where steps are measured by it."""
        if self.unit in ("margin", "tau") and not 0 < tau < math.inf:
            raise ValueError(
                f'finite differences with unit="{self.unit}" step by tau, which must be above 0 '
                f'and finite, got {tau}: take FiniteDifference(unit="absolute", step=...)'
            )

    @property
    def passes(self) -> int:
        """How many it makes beside the step's own."""
        return len(_SIDES[self.side])

    def length(self, step: Step, margin: Tensor) -> float | Tensor:
        """The step in the unit of the margin: one for all, or [B]."""
        tau = step.objective.tau
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
    if step.objective.input_std is not None:
        inputs = inputs / channel_scale(step.objective.input_std, inputs)
    deviation = (inputs - inputs.mean()).square().mean().sqrt()
    ones = max(inputs.numel() // max(inputs.shape[0], 1), 1) ** (1 / float(step.objective.p))
    spread: Tensor = torch.where(deviation > 0, deviation, 1.0) * ones
    return spread


def finite_difference(step: Step, settings: FiniteDifference) -> MarginLoss:
    """The loss, with a gradient in which a difference of gaps stands for the norm's.

    The value is exact. The class that each gap is measured to is that of the base pass.

    Raises:
        ValueError: The model is not known, or samples are coupled and reduction is "none".
    """
    objective = step.objective
    if step.rerun is None:
        raise ValueError(
            'gradient="finite_difference" runs the model at shifted inputs: call '
            "criterion.run(model, inputs, target) in place of criterion(logits, target, inputs)"
        )
    critical = objective.critical(step.logits, step.inputs, step.target)
    grad = objective.input_gradient(
        step.logits, step.inputs, step.target, critical, create_graph=False
    )
    out = objective.loss(step.logits, step.target, grad, critical)
    slope = objective.norm_slope(out, step.target)
    length = settings.length(step, out.margin)
    if step.coupled and settings.unit != "margin":
        if objective.per_sample:
            raise ValueError(
                'gradient="finite_difference" cannot serve reduction="none" while BatchNorm '
                "couples the samples of a batch: the weights of the samples must be known before "
                'the second pass. Use reduction="mean" or "sum", batchnorm="running", or steps of '
                'FiniteDifference(unit="margin")'
            )
        shift, weight = _coupled(slope, length)
    else:
        shift, weight = _separate(slope, out.gap, length)
    terms = _Terms(objective, step.target, critical, step.rerun, step.inputs, grad, shift, weight)
    sides = _SIDES[settings.side]
    jobs = [partial(terms.moved, side, factor) for side, factor in sides.items()]
    total: Tensor | float = 0.0
    at_base = -sum(sides.values())
    if at_base != 0:
        total = terms.at(step.logits, at_base)
    if step.deferral is not None and step.deferral.serves(step.logits):
        total = total + step.deferral.add(jobs)
    else:
        for job in jobs:
            total = total + job()
    assert isinstance(total, Tensor)
    # Its value is 0: only its gradient is wanted.
    nothing = objective.spread(total - total.detach(), step.target)
    return out._replace(loss=out.loss + nothing.to(out.loss.dtype))


@dataclass(frozen=True)
class _Terms:
    """The parts of the difference, each a weighted gap, as they are added to the loss.

    Passes that wait for the backward hold this, so the logits are not in it.
    """

    objective: Objective
    target: Tensor
    critical: Critical
    rerun: Callable[[Tensor], Tensor]
    inputs: Tensor
    grad: Tensor
    shift: Tensor
    weight: Tensor

    def at(self, logits: Tensor, factor: float) -> Tensor:
        gap = self.objective.gap(logits, self.target, self.critical)
        # An infinite gap, that of masked classes, has no slope, and its value would come to NaN.
        valid = self.objective.counted(self.target) & ~gap.isinf()
        term = torch.where(valid, factor * self.weight * gap, 0.0)
        return term if self.objective.per_sample else term.sum()

    def moved(self, side: float, factor: float) -> Tensor:
        moved = dual_direction(
            self.grad,
            side * self.shift,
            p=self.objective.p,
            base=self.inputs.detach(),
            input_std=self.objective.input_std,
        )
        return self.at(self.rerun(moved), factor)


def _separate(slope: Tensor, gap: Tensor, length: float | Tensor) -> tuple[Tensor, Tensor]:
    """Every sample makes a step of the whole length, and its difference is weighted.

    Returns:
        The shift along v that leads away from the boundary [B], and the weight [B].
    """
    away = torch.where(gap < 0, -1.0, 1.0).to(slope.dtype)
    return away * length, slope * away / length


def _coupled(slope: Tensor, length: float | Tensor) -> tuple[Tensor, Tensor]:
    """The weights are folded into the direction: the sample with the largest one steps farthest.

    Where samples see each other, shifting one changes the gaps of all, and only the difference of
    the plain sum of the gaps along the weighted direction has the right derivative. The slopes have
    the sign of the gap, so that +1 leads away from the boundary here too.
    """
    largest = slope.abs().amax() if slope.numel() else slope.sum()
    unit = slope / torch.where(largest > 0, largest, 1.0)
    return unit * length, largest / length
