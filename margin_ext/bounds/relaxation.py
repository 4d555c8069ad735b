"""Linear lower bounds of a network's outputs over a ball, which hold in spite of rounding.

Within a ball around the sample every activation lies between two lines; carried backward through
the affine layers they bound any linear form of an output from below by an affine function of the
input (CROWN: Zhang et al., arXiv 1811.00866). Everything is computed in float64, and every
rounding error of that is bounded and taken off: an error in a form's coefficients moves its value
by at most the error times the largest size that the units reach in the ball.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from margin_ext.bounds.affine_layers import AffineLayer
from margin_ext.bounds.convex_activations import Lines, enclosing_lines
from margin_ext.bounds.relaxed_network import Stage
from margin_ext.threat import ThreatModel

__all__ = ["Ball", "Forms", "Relaxation"]

# Unit roundoff of float64, and what underflow can lose.
_UNIT = 2.0**-53
_TINY = 1e-290


@dataclass
class Ball:
    """What holds for every input within a radius of the sample.

    Attributes:
        radius: In the threat model's units.
        low: Lower bounds [1, units] of what goes into the activation of every stage but the last.
        high: Upper bounds.
        magnitudes: Upper bounds on the size of each affine layer's output [units], by stage.
    """

    radius: float
    low: list[Tensor]
    high: list[Tensor]
    magnitudes: list[list[Tensor]]


class Forms(NamedTuple):
    """Affine lower bounds on S linear forms.

    Attributes:
        at_center: A lower bound on the value at the sample [S].
        norm: An upper bound on the dual norm of the gradient [S].
        rows: For forms on the logits, the forms on what comes out of each activation [S, units],
            last one first.
    """

    at_center: Tensor
    norm: Tensor
    rows: list[Tensor]

    def reach(self, slack: Tensor | float = 0.0) -> Tensor:
        """The distance [S] within which the form exceeds slack; infinite where it always does."""
        room = self.at_center - slack
        room = room - 4 * _UNIT * (self.at_center.abs() + slack)
        ratio = room / self.norm * (1 - 4 * _UNIT)
        return torch.where(self.norm > 0, ratio, torch.where(room > 0, torch.inf, 0.0))

    def least(self, radius: float) -> Tensor:
        """A lower bound [S] on the form over the ball."""
        fall = radius * self.norm
        return self.at_center - fall - 4 * _UNIT * (self.at_center.abs() + fall)


class Relaxation:
    """Linear bounds of a network around one sample.

    Attributes:
        stages: The network.
        x: The sample [1, ...] in float64.
        threat: How distances are measured.
        counts: Units of every activation.
        rows: Forms that are carried backward at a time.
        unit: Unit roundoff of the type in which the model itself computes.
        first_norms: Those of another sample's relaxation of the same network; None: computed.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        x: Tensor,
        threat: ThreatModel,
        *,
        rows: int,
        unit: float,
        first_norms: Tensor | None = None,
    ) -> None:
        self.stages = stages
        self.x = x
        self.threat = threat
        self.rows = rows
        self._unit = unit
        single = unit >= torch.finfo(torch.float32).eps / 2
        self._floor = torch.finfo(torch.float32 if single else torch.float64).tiny / unit
        self.first_norms = self._norms() if first_norms is None else first_norms
        # How far an input coordinate moves in a ball of radius 1.
        self._moves = threat.in_input_units(torch.ones_like(x))
        self._first = self.stages[0].affine(x).flatten(1)
        # Roundings that are not of sums of products: a few for every activation and constant.
        self.counts = [stage.rectified for stage in stages[:-1]]
        self._few = 24 + 4 * sum(len(stage.layers) + 1 for stage in stages)

    def logits(self, x: Tensor) -> Tensor:
        """The network's output [B, C] in float64."""
        h = x
        for stage in self.stages:
            h = stage(h)
        return h

    def _norms(self) -> Tensor:
        """Dual norms [units] of the first affine stage's rows: the same for every sample."""
        stage, norms = self.stages[0], []
        units = torch.arange(stage.units, device=self.x.device)
        for part in units.split(self.rows):
            pulled = self._picking(part, stage.units)
            for layer in reversed(stage.layers):
                pulled, _ = layer.pull(pulled)
            norms.append(self.threat.dual_norm(pulled))
        return torch.cat(norms).unsqueeze(0)

    def ball(self, radius: float) -> Ball:
        """What holds within a radius."""
        h = self.x.abs() + radius * self._moves
        ball = Ball(radius, [], [], [])
        for number, stage in enumerate(self.stages):
            magnitudes = []
            for layer in stage.layers:
                # As rounded by the model, which may be a little larger; products that underflow are
                # off by no more than the relative error of the floor.
                h = layer.magnitude(h) * (1 + self._error(layer)) + self._floor
                magnitudes.append(h.flatten())
            ball.magnitudes.append(magnitudes)
            if stage.activation is None:
                continue
            if number == 0:
                low, high = self._first_bounds(ball)
            else:
                every = torch.arange(stage.rectified, device=self.x.device)
                low, high = self.unit_bounds(number, every, ball, self.lines(ball))
            ball.low.append(low)
            ball.high.append(high)
            largest = torch.maximum(stage.activation(low).abs(), stage.activation(high).abs())
            rest = h.flatten(1)[:, stage.rectified :]
            h = torch.cat([largest, rest], dim=1).reshape(h.shape)
        return ball

    def _first_bounds(self, ball: Ball) -> tuple[Tensor, Tensor]:
        """Bounds of what goes into the first activation: exact up to rounding."""
        stage = self.stages[0]
        lost = sum(self._error(layer) for layer in stage.layers) * ball.magnitudes[0][-1]
        norms = self.first_norms * (1 + self._gamma(self.x.numel() + 64))
        fall = ball.radius * norms + 2 * lost + _TINY
        count = stage.rectified
        return (self._first - fall)[:, :count], (self._first + fall)[:, :count]

    def unit_bounds(
        self, number: int, units: Tensor, ball: Ball, lines: Sequence[Lines]
    ) -> tuple[Tensor, Tensor]:
        """Bounds [S, units] of what goes into some units of a stage's activation.

        Args:
            number: The stage.
            units: Their indices.
            ball: Over which they hold.
            lines: The lines of the stages before, with S rows.
        """
        branches = max(one.below.shape[0] for one in lines)
        low, high = [], []
        for part in units.split(max(1, self.rows // (2 * branches))):
            rows = self._picking(part, self.stages[number].units)
            count = 2 * len(part)
            # Of every branch all units from below and from above.
            forms = self.forms(
                torch.cat([rows, -rows]).repeat(branches, 1),
                ball,
                [
                    Lines(*(ends.expand(branches, -1).repeat_interleave(count, 0) for ends in one))
                    for one in lines
                ],
                depth=number,
            )
            least = forms.least(ball.radius).reshape(branches, count)
            low.append(least[:, : len(part)])
            high.append(-least[:, len(part) :])
        return torch.cat(low, dim=1), torch.cat(high, dim=1)

    def _picking(self, units: Tensor, count: int) -> Tensor:
        """Rows [len(units), count] that pick units."""
        rows = self.x.new_zeros(len(units), count)
        rows[torch.arange(len(units), device=units.device), units] = 1
        return rows

    def lines(self, ball: Ball, positions: Sequence[Tensor] | None = None) -> list[Lines]:
        """Lines around the activations whose bounds the ball has."""
        return [
            self.enclose(number, low, high, None if positions is None else positions[number])
            for number, (low, high) in enumerate(zip(ball.low, ball.high, strict=True))
        ]

    def enclose(
        self, number: int, low: Tensor, high: Tensor, position: Tensor | None = None
    ) -> Lines:
        """Lines around one stage's activation between low and high [S or 1, rectified units]."""
        stage = self.stages[number]
        assert stage.activation is not None
        lines = enclosing_lines(stage.activation, low, high, position)
        # Units that pass lie on both lines.
        return Lines(
            *(_widened(line, stage, value) for line, value in zip(lines, (1, 0, 1, 0), strict=True))
        )

    def retouched(
        self, lines: Sequence[Lines], positions: Tensor, low: Tensor, high: Tensor
    ) -> list[Lines]:
        """The lines with other tangents; positions and bounds [S, units of all activations]."""
        found = []
        ends = (part.split(self.counts, dim=1) for part in (low, high, positions))
        for stage, old, end in zip(self.stages, lines, zip(*ends, strict=True), strict=False):
            assert stage.activation is not None
            below, offset = stage.activation.tangents(*end)
            new = _widened(below, stage, 1), _widened(offset, stage, 0)
            found.append(old._replace(below=new[0], below_offset=new[1]))
        return found

    def forms(
        self,
        rows: Tensor,
        ball: Ball,
        lines: Sequence[Lines],
        *,
        depth: int | None = None,
        shifts: Sequence[Tensor] | None = None,
        rounding: bool = True,
    ) -> Forms:
        """Lower bounds on rows [S, units] times the affine output of a stage, over the ball.

        Args:
            rows: The forms.
            ball: Its magnitudes bound the rounding errors.
            lines: The lines of the stages before.
            depth: The stage; None: the last one.
            shifts: Added to the forms on what goes into each activation [S, units].
            rounding: False: rounding errors are not looked at, and nothing is certain.
        """
        last = len(self.stages) - 1
        depth = last if depth is None else depth
        constant = rows.new_zeros(rows.shape[0])
        error = constant + _TINY
        before = []
        for number in range(depth, -1, -1):
            layers = self.stages[number].layers
            for layer, magnitude in zip(
                reversed(layers), reversed(ball.magnitudes[number]), strict=True
            ):
                if rounding:
                    size = rows.flatten(1).abs()
                    error = error + self._error(layer) * (size @ magnitude)
                rows, offset = layer.pull(rows)
                constant = constant + offset
            if number:
                rows = rows.flatten(1)
                if depth == last:
                    before.append(rows)
                below, below_offset, above, above_offset = lines[number - 1]
                positive, negative = rows.clamp_min(0), rows.clamp_max(0)
                offsets = positive * below_offset + negative * above_offset
                constant = constant + offsets.sum(dim=1)
                if rounding:
                    error = error + self._gamma(rows.shape[1]) * offsets.abs().sum(dim=1)
                    error = error + self._rounded_activation(number - 1, rows.abs(), ball)
                rows = positive * below + negative * above
                if shifts is not None:
                    rows = rows + shifts[number - 1]
        flat = rows.flatten(1)
        center = self.x.flatten()
        error = error + self._gamma(flat.shape[1]) * (flat.abs() @ center.abs())
        norm = self.threat.dual_norm(rows.reshape(rows.shape[0], *self.x.shape[1:]))
        norm = norm * (1 + self._gamma(flat.shape[1] + 64))
        return Forms(constant + flat @ center - error, norm, before)

    def _gamma(self, terms: int) -> float:
        """Relative error of a sum of so many products in float64, and of a few roundings more."""
        return 2 * (terms + self._few) * _UNIT

    def _error(self, layer: AffineLayer) -> float:
        """Relative error of a layer: of the model's own rounding, and of what is computed here."""
        own = (layer.sums + 1) * self._unit if layer.sums else 0.0
        # n roundings in any order: n unit / (1 - n unit).
        return own / (1 - own) + self._gamma(layer.terms) if own < 1 else math.inf

    def _rounded_activation(self, number: int, size: Tensor, ball: Ball) -> Tensor | float:
        """What the model's rounding of an activation adds to forms of this size [S, units]."""
        stage = self.stages[number]
        assert stage.activation is not None
        rounding = stage.activation.rounding(ball.magnitudes[number][-1], self._unit)
        return size @ rounding if isinstance(rounding, Tensor) else 0.0


def _widened(line: Tensor, stage: Stage, value: float) -> Tensor:
    """A line's slopes or offsets [S, rectified] with a value for the units that pass."""
    rest = stage.units - stage.rectified
    return torch.nn.functional.pad(line, (0, rest), value=value) if rest else line
