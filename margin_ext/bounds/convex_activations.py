"""Activations that a linear relaxation can enclose between two lines: ReLU, LeakyReLU, Softplus.

All are convex: the chord between the ends of an interval lies above, any tangent below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["ConvexActivation", "Lines", "Rectifier", "SoftRectifier", "enclosing_lines"]

# Relative room for what is rounded when a line is computed.
_ROOM = 2.0**-46
_TINY = 1e-290


class Lines(NamedTuple):
    """Slopes and offsets [S or 1, units] of a line below and a line above every unit."""

    below: Tensor
    below_offset: Tensor
    above: Tensor
    above_offset: Tensor


class ConvexActivation(Protocol):
    """A convex function with slopes in [0, 1], by units."""

    def __call__(self, h: Tensor) -> Tensor:
        """The activation of h."""
        ...

    def tangents(self, low: Tensor, high: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slope and offset of a line below between low and high.

        Args:
            low: [S or 1, units].
            high: [S or 1, units].
            position: Numbers in [0, 1] that choose among the tangents; None: the usual one.
        """
        ...

    def rounding(self, magnitude: Tensor, unit: float) -> Tensor | float:
        """How far a computed value may be off at arguments up to magnitude."""
        ...


def enclosing_lines(
    activation: ConvexActivation, low: Tensor, high: Tensor, position: Tensor | None = None
) -> Lines:
    """Lines that hold the activation between low and high [S or 1, units]."""
    below, below_offset = activation.tangents(low, high, position)
    at_low, at_high = activation(low), activation(high)
    width = high - low
    above = torch.where(width > 0, (at_high - at_low) / width.clamp_min(_TINY), below).clamp(0, 1)
    # With any slope a line that is above at both ends is above in between.
    room = _ROOM * (at_low.abs() + at_high.abs() + low.abs() + high.abs()) + _TINY
    above_offset = torch.maximum(at_low - above * low, at_high - above * high) + room
    return Lines(below, below_offset, above, above_offset)


@dataclass(frozen=True)
class Rectifier:
    """max(h, slope * h): ReLU with slope 0, LeakyReLU with one between 0 and 1."""

    slope: float = 0.0

    def __call__(self, h: Tensor) -> Tensor:
        """The activation of h."""
        return torch.maximum(h, self.slope * h)

    def tangents(self, low: Tensor, high: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Any slope in between is a tangent at 0; usually the steeper end, by area."""
        if position is None:
            position = (high > -low).to(low.dtype)
        inner = (self.slope + position * (1 - self.slope)).clamp(self.slope, 1.0)
        slopes = torch.where(low >= 0, 1.0, torch.where(high <= 0, self.slope, inner))
        return slopes, torch.zeros_like(slopes)

    def rounding(self, magnitude: Tensor, unit: float) -> Tensor | float:
        """Only the product with the slope is rounded."""
        return 2 * unit * magnitude if self.slope else 0.0


@dataclass(frozen=True)
class SoftRectifier:
    """log(1 + exp(beta h)) / beta, which PyTorch replaces by h beyond a threshold: Softplus."""

    beta: float = 1.0
    threshold: float = 20.0

    def __call__(self, h: Tensor) -> Tensor:
        """The activation of h."""
        return softplus(h, self.beta, math.inf)

    def tangents(self, low: Tensor, high: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tangent at a position between low and high; usually in the middle."""
        at = low + (0.5 if position is None else position) * (high - low)
        slopes = torch.sigmoid(self.beta * at)
        value = self(at)
        room = 8 * _ROOM * (value + at.abs() + low.abs() + high.abs()) + _TINY
        return slopes, value - slopes * at - room

    def rounding(self, magnitude: Tensor, unit: float) -> Tensor | float:
        """Beyond the threshold exp(-threshold) / beta is left out."""
        return 8 * unit * (magnitude + 1 / self.beta) + 2 * math.exp(-self.threshold) / self.beta
