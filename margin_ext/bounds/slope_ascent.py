"""Lines below the activations, chosen so that the certified distance becomes as large as possible.

Any tangent is a line below; gradient ascent on the distance chooses among them, for every class of
its own (alpha-CROWN: Xu et al., arXiv 2011.13824). Where activations are split, the conditions of
a branch enter with multipliers of at least 0 (beta-CROWN: Wang et al., arXiv 2103.06624).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margin_ext.bounds.relaxation import Ball, Forms, Relaxation

__all__ = ["Choice", "ascend", "usual_choice"]

_STEP = 0.1
_LAST = 0.1


@dataclass
class Choice:
    """What may be chosen for S forms, a tensor [S, units] an activation.

    Attributes:
        positions: In [0, 1], among the tangents.
        multipliers: At least 0, of the conditions of a branch, in units of ``scales``.
        signs: 1 where a unit is held positive, -1 where negative, 0 where it is free.
        scales: [S, 1] an activation.
        low: Lower bounds of what goes into the activation, in the branch.
        high: Upper bounds.
    """

    positions: list[Tensor]
    multipliers: list[Tensor]
    signs: list[Tensor]
    scales: list[Tensor]
    low: list[Tensor]
    high: list[Tensor]

    def of(self, chosen: Tensor) -> Choice:
        """That of some of the forms."""
        return Choice(*([one[chosen] for one in part] for part in vars(self).values()))

    @staticmethod
    def joined(choices: Sequence[Choice]) -> Choice:
        """Those of several, one after the other."""
        parts = zip(*(vars(choice).values() for choice in choices), strict=True)
        return Choice(*([torch.cat(one) for one in zip(*part, strict=True)] for part in parts))

    def forms(self, relaxation: Relaxation, rows: Tensor, ball: Ball) -> Forms:
        """The forms' lower bounds."""
        lines, shifts = [], []
        for number in range(len(self.low)):
            low, high = self.low[number], self.high[number]
            lines.append(relaxation.enclose(number, low, high, self.positions[number]))
            # sign * h >= 0 in the branch, so that taking it off leaves a lower bound.
            shift = -self.signs[number] * self.multipliers[number] * self.scales[number]
            rest = relaxation.stages[number].units - shift.shape[1]
            shifts.append(torch.nn.functional.pad(shift, (0, rest)))
        return relaxation.forms(rows, ball, lines, shifts=shifts)


def usual_choice(relaxation: Relaxation, rows: Tensor, ball: Ball) -> Choice:
    """Without ascent: CROWN's lines, and no branch."""
    count = rows.shape[0]
    forms = relaxation.forms(rows, ball, relaxation.lines(ball))
    choice = Choice([], [], [], [], [], [])
    for low, high, before in zip(ball.low, ball.high, reversed(forms.rows), strict=True):
        low, high = (end.expand(count, -1) for end in (low, high))
        choice.positions.append((high > -low).to(low.dtype))
        choice.multipliers.append(torch.zeros_like(low))
        choice.signs.append(torch.zeros_like(low))
        choice.scales.append(before.abs().mean(dim=1, keepdim=True))
        choice.low.append(low)
        choice.high.append(high)
    return choice


def ascend(
    relaxation: Relaxation, rows: Tensor, ball: Ball, choice: Choice, slack: Tensor, steps: int
) -> tuple[Choice, Tensor]:
    """Gradient ascent (Adam) on the distance of every form.

    Args:
        relaxation: Of the sample.
        rows: Forms on the logits [S, C].
        ball: In which the lines hold.
        choice: Where to start.
        slack: What the forms must exceed [S].
        steps: Gradient steps.

    Returns:
        The best choices, and the distances [S] that they certify, which may exceed the ball.
    """
    tuned = [part.clone() for part in (*choice.positions, *choice.multipliers)]
    best = [part.clone() for part in tuned]
    reached = slack.new_full(slack.shape, -torch.inf)
    first = [torch.zeros_like(part) for part in tuned]
    second = [torch.zeros_like(part) for part in tuned]
    layers = len(choice.positions)
    for step in range(steps + 1):
        for part in tuned:
            part.requires_grad_()
        tried = Choice(tuned[:layers], tuned[layers:], choice.signs, choice.scales, choice.low,
                       choice.high)
        with torch.enable_grad():
            reach = tried.forms(relaxation, rows, ball).reach(slack)
            total = torch.where(torch.isfinite(reach), reach, 0.0).sum()
        better = reach.detach() > reached
        reached = torch.where(better, reach.detach(), reached)
        for kept, part in zip(best, tuned, strict=True):
            kept[better] = part.detach()[better]
        # Beyond the ball nothing is gained.
        if step == steps or bool((reached >= ball.radius).all()):
            break
        grads = torch.autograd.grad(total, tuned, allow_unused=True)
        size = _STEP * (_LAST ** (step / steps))
        moved = []
        for number, (part, grad) in enumerate(zip(tuned, grads, strict=True)):
            grad = torch.zeros_like(part) if grad is None else grad.nan_to_num(0.0)
            first[number] = 0.9 * first[number] + 0.1 * grad
            second[number] = 0.98 * second[number] + 0.02 * grad * grad
            mean = first[number] / (1 - 0.9 ** (step + 1))
            spread = (second[number] / (1 - 0.98 ** (step + 1))).sqrt()
            new = part.detach() + size * mean / spread.clamp_min(torch.finfo(part.dtype).tiny)
            moved.append(new.clamp(0, 1) if number < layers else new.clamp_min(0))
        tuned = moved
    chosen = Choice(best[:layers], best[layers:], choice.signs, choice.scales, choice.low,
                    choice.high)
    return chosen, reached
