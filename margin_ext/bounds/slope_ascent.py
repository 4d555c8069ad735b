"""Lines below the activations, chosen so that the certified distance becomes as large as possible.

Any tangent is a line below; gradient ascent on the distance chooses one of them, for every class
separately (alpha-CROWN: Xu et al., arXiv 2011.13824). Where activations are split, the conditions
of a branch enter with multipliers of at least 0 (beta-CROWN: Wang et al., arXiv 2103.06624).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from margin_ext.bounds.convex_activations import Lines
from margin_ext.bounds.relaxation import Ball, Forms, Relaxation

__all__ = ["Choice", "ascend", "usual_choice"]

# Length of the first and of the last step, in units of the range of what is chosen.
_STEP, _LAST = 0.2, 0.02
# Decay of Adam's two averages (arXiv 1412.6980).
_MEAN, _SQUARE = 0.9, 0.98


@dataclass(frozen=True)
class Choice:
    """What may be chosen for S forms, each [S, U] for the U units of all activations.

    Attributes:
        positions: Which of the tangents, in [0, 1].
        multipliers: At least 0, of the conditions of a branch, in units of ``scales``.
        signs: 1 where a unit is held positive, -1 where negative, 0 where it is free.
        scales: Positive.
        low: Lower bounds of what goes into the activation, in the branch.
        high: Upper bounds.
    """

    positions: Tensor
    multipliers: Tensor
    signs: Tensor
    scales: Tensor
    low: Tensor
    high: Tensor

    def of(self, chosen: Tensor) -> Choice:
        """The choice for some of the forms."""
        return Choice(**{name: part[chosen] for name, part in vars(self).items()})

    @staticmethod
    def joined(choices: Sequence[Choice]) -> Choice:
        """Several choices as one, for the forms of all of them."""
        names = vars(choices[0])
        return Choice(**{name: torch.cat([vars(one)[name] for one in choices]) for name in names})

    def lines(self, relaxation: Relaxation) -> list[Lines]:
        """Lines around all activations."""
        chosen = (self.low, self.high, self.positions)
        parts = zip(*(part.split(relaxation.counts, dim=1) for part in chosen), strict=True)
        return [relaxation.enclose(number, *ends) for number, ends in enumerate(parts)]

    def forms(self, relaxation: Relaxation, rows: Tensor, ball: Ball) -> Forms:
        """Lower bounds on rows [S, C] times the logits."""
        return self._forms(relaxation, rows, ball, self.lines(relaxation), rounding=True)

    def _forms(
        self, relaxation: Relaxation, rows: Tensor, ball: Ball, lines: list[Lines], rounding: bool
    ) -> Forms:
        # sign * h >= 0 in the branch, so that taking it off leaves a lower bound.
        shifts = (-self.signs * self.multipliers * self.scales).split(relaxation.counts, dim=1)
        wide = [
            pad(shift, (0, stage.units - stage.rectified))
            for shift, stage in zip(shifts, relaxation.stages, strict=False)
        ]
        return relaxation.forms(rows, ball, lines, shifts=wide, rounding=rounding)


def usual_choice(relaxation: Relaxation, rows: Tensor, ball: Ball) -> Choice:
    """Without ascent: CROWN's lines, and no branch."""
    forms = relaxation.forms(rows, ball, relaxation.lines(ball))
    low, high = (torch.cat(ends, dim=1).expand(len(rows), -1) for ends in (ball.low, ball.high))
    scales = [
        before.abs().mean(dim=1, keepdim=True).clamp_min(1e-290).expand(-1, count)
        for before, count in zip(reversed(forms.rows), relaxation.counts, strict=True)
    ]
    return Choice(
        positions=(high > -low).to(low.dtype),
        multipliers=torch.zeros_like(low),
        signs=torch.zeros_like(low),
        scales=torch.cat(scales, dim=1),
        low=low,
        high=high,
    )


def ascend(
    relaxation: Relaxation, rows: Tensor, ball: Ball, choice: Choice, slack: Tensor, steps: int
) -> tuple[Choice, Tensor]:
    """Gradient ascent (Adam) on the distance of every form.

    Args:
        relaxation: The relaxation of the sample.
        rows: Forms on the logits [S, C].
        ball: In which the lines hold.
        choice: Where to start.
        slack: What the forms must exceed [S].
        steps: Gradient steps.

    Returns:
        The best choices, and the distances [S] that they certify, which may exceed the ball.
    """
    units = choice.positions.shape[1]
    # Positions and multipliers in a row.
    tuned = torch.cat([choice.positions, choice.multipliers], dim=1)
    largest = torch.ones_like(tuned)
    largest[:, units:] = torch.inf
    best, reached = tuned, torch.full_like(slack, -torch.inf)
    mean, square = torch.zeros_like(tuned), torch.zeros_like(tuned)
    above = choice.lines(relaxation)
    for step in range(steps + 1):
        tuned.requires_grad_()
        with torch.enable_grad():
            tried = replace(choice, positions=tuned[:, :units], multipliers=tuned[:, units:])
            lines = relaxation.retouched(above, tried.positions, tried.low, tried.high)
            # The direction of the ascent needs no bound on rounding errors.
            reach = tried._forms(relaxation, rows, ball, lines, rounding=False).reach(slack)
            total = torch.where(torch.isfinite(reach), reach, 0.0).sum()
        reach = reach.detach()
        better = reach > reached
        reached = torch.where(better, reach, reached)
        best = torch.where(better.unsqueeze(1), tuned.detach(), best)
        # Beyond the ball nothing is gained.
        if step == steps or bool((reached > 1.001 * ball.radius).all()):
            break
        (grad,) = torch.autograd.grad(total, tuned)
        grad = grad.nan_to_num(0.0, 0.0, 0.0)
        mean = _MEAN * mean + (1 - _MEAN) * grad
        square = _SQUARE * square + (1 - _SQUARE) * grad * grad
        even = mean / (1 - _MEAN ** (step + 1))
        spread = (square / (1 - _SQUARE ** (step + 1))).sqrt().clamp_min(1e-150)
        size = _STEP * (_LAST / _STEP) ** (step / steps)
        tuned = (tuned.detach() + size * even / spread).clamp_min(0)
        tuned = torch.minimum(tuned, largest)
    chosen = replace(choice, positions=best[:, :units], multipliers=best[:, units:])
    return chosen, chosen.forms(relaxation, rows, ball).reach(slack)
