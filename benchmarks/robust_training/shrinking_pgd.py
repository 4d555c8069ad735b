"""An attack that begins in a larger ball, which shrinks to the radius while it searches.

Inside the radius a search can end in front of a wall that it could have gone around. From outside
it arrives where the boundary comes nearest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margin_ext.attacks import AttackResult
from margin_ext.models.evaluation_mode import Model
from margin_ext.per_sample import per_sample
from margin_ext.random_points import Draws
from margin_ext.threat import ThreatModel

__all__ = ["ShrinkingPGD", "into_ball"]

# Of the search that finds which classes are near.
_FIRST_STEPS = 25
# The last steps go to the best point of the tangent.
_LAST_STEPS = 3
# Of the unit gradients.
_MOMENTUM = 0.75
# Length of the first step, in units of the radius, and of the last over the first.
_FIRST_LENGTH = 1.0
_SHORTER = 0.02
# The part of the steps in which the ball shrinks.
_SHRINKING = 0.6
# What the restarts take turns with, in units of the radius: where they begin, and the first ball.
_STARTS = (0.25, 1.0, 2.0)
_BALLS = (1.3, 1.6)
# One of so many restarts goes toward all classes at once.
_SOFT = 3


@dataclass(frozen=True, kw_only=True)
class ShrinkingPGD:
    """Gradient steps with momentum toward one class, in a ball that shrinks to the radius; l2 only.

    A first search goes toward every class. Then those images that it left nearest to the boundary
    get all restarts, each toward the classes that were nearest.

    Attributes:
        steps: Gradient steps of a restart.
        restarts: Independent starts toward each class.
        targets: Classes toward which an image's restarts go.
        near: The part of the images that gets restarts.
        seed: Of the starts.
    """

    steps: int = 100
    restarts: int = 45
    targets: int = 2
    near: float = 0.2
    seed: int = 0

    name = "shrinking_pgd"
    title = "PGD in a shrinking ball"

    def check(self, threat: ThreatModel) -> None:
        if threat.p != 2 or threat.input_std is not None:
            raise ValueError("PGD in a shrinking ball is for p = 2 in pixel units")

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> AttackResult:
        """Search the ball of radius eps."""
        self.check(threat)
        search = _Search(model, inputs.detach(), target, eps, threat)
        with torch.no_grad():
            classes = model(inputs).shape[1]
        everyone = torch.arange(len(target), device=inputs.device)
        for wrong in range(classes):
            rows = everyone[target != wrong]
            toward = torch.full_like(rows, wrong)
            search.run(rows, toward, inputs[rows], _FIRST_STEPS, 1.0)
        chosen = min(self.targets, classes - 1)
        nearest = search.nearest(math.ceil(self.near * len(target)))
        for restart in range(self.restarts):
            rows = nearest[search.robust[nearest]]
            if not len(rows):
                break
            toward = search.best[rows].topk(chosen).indices.T.reshape(-1)
            numbers = [indices[i] for i in rows.tolist()]
            reach = eps * _STARTS[restart % len(_STARTS)]
            starts = [
                threat.random_point(
                    inputs[rows], reach, Draws(self.seed, f"{self.name}{restart}.{turn}", numbers)
                )
                for turn in range(chosen)
            ]
            search.run(
                rows.repeat(chosen),
                toward,
                torch.cat(starts),
                self.steps,
                _BALLS[restart % len(_BALLS)],
                soft=restart % _SOFT == _SOFT - 1,
            )
        return AttackResult(search.robust, search.found)


class _Search:
    """What is known of a batch of images while it is attacked.

    Attributes:
        robust: No adversarial example was found [B].
        found: Adversarial examples, the input itself where there is none [B, ...].
        best: How near each class came to being the prediction: the largest difference of its logit
            to that of the label within the radius [B, C].
    """

    def __init__(
        self, model: Model, inputs: Tensor, label: Tensor, eps: float, threat: ThreatModel
    ) -> None:
        self.model, self.inputs, self.label = model, inputs, label
        self.eps, self.threat, self.bounds = eps, threat, threat.bounds(inputs)
        with torch.no_grad():
            differences = _differences(model(inputs), label)
        self.best = differences
        self.robust = differences.amax(1) < 0
        self.found = inputs.clone()

    def nearest(self, count: int) -> Tensor:
        """Numbers of the images that are robust so far and came nearest to another class."""
        numbers = self.robust.nonzero().squeeze(1)
        return numbers[self.best[numbers].amax(1).argsort(descending=True)[:count]]

    def run(
        self,
        rows: Tensor,
        toward: Tensor,
        start: Tensor,
        steps: int,
        ball: float,
        *,
        soft: bool = False,
    ) -> None:
        """One start an image and class.

        Args:
            rows: Numbers of the images [N], some more than once.
            toward: The wrong classes [N].
            start: [N, ...].
            steps: Gradient steps.
            ball: First radius, in units of eps.
            soft: Go toward all wrong classes at once, the likeliest most.
        """
        x, velocity = start, torch.zeros_like(start)
        numbers = torch.arange(len(rows), device=rows.device)
        for count in range(steps + 1):
            shrunk = min(1.0, count / (_SHRINKING * steps))
            radius = self.eps * (ball + (1 - ball) * shrunk)
            center, label = self.inputs[rows], self.label[rows]
            x = into_ball(x, center, radius, self.bounds).requires_grad_()
            differences = _differences(self.model(x), label)
            goal = differences[numbers, toward]
            if soft:
                goal = torch.logsumexp(2 * differences, 1)
            (grad,) = torch.autograd.grad(goal.sum(), x)
            x = x.detach()
            if shrunk == 1 or ball == 1:
                self._note(rows, x, differences.detach())
            if count == steps:
                return
            if count >= steps - _LAST_STEPS:  # the best point of the tangent within the ball
                x = center + 100 * self.eps * _unit(grad)
                continue
            velocity = _MOMENTUM * velocity + _unit(self.threat.inward(grad, x))
            length = self.eps * _FIRST_LENGTH * _SHORTER ** (count / (steps - _LAST_STEPS))
            x = x + length * _unit(velocity)

    def _note(self, rows: Tensor, x: Tensor, differences: Tensor) -> None:
        self.best.scatter_reduce_(0, rows.unsqueeze(1).expand_as(differences), differences, "amax")
        broken = differences.amax(1) >= 0
        self.robust[rows[broken]] = False
        self.found[rows[broken]] = x[broken]


def into_ball(
    x: Tensor, center: Tensor, radius: float, bounds: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The nearest point of the l2 ball within the range: of x - center, scaled and then clipped.

    Coordinates that the range holds back leave more of the radius to the others.
    """
    whole = x - center
    if bounds is None:
        return center + whole * (radius / _norm(whole)).clamp_max(1)
    low, high = (bound - center for bound in bounds)
    squares = whole.square()
    scale = (radius / _norm(whole).clamp_min(1e-12)).clamp_max(1)
    for _ in range(8):
        moved = whole * scale
        free = ((moved > low) & (moved < high)).to(x.dtype)
        held = _sum(moved.clamp(low, high).square() * (1 - free))
        left = (radius**2 - held).clamp_min(0) / _sum(squares * free).clamp_min(1e-20)
        scale = left.sqrt().clamp_max(1)
    moved = (whole * scale).clamp(low, high)
    return center + moved * (radius / _norm(moved).clamp_min(1e-12)).clamp_max(1)


def _differences(logits: Tensor, label: Tensor) -> Tensor:
    """Each class's logit minus that of the label [B, C]; -inf for the label."""
    own = label.unsqueeze(1)
    return (logits - logits.gather(1, own)).scatter(1, own, -torch.inf)


def _unit(gradient: Tensor) -> Tensor:
    return gradient / _norm(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def _norm(x: Tensor) -> Tensor:
    return _sum(x.square()).sqrt()


def _sum(x: Tensor) -> Tensor:
    """Over each sample's elements, in a shape that broadcasts over them."""
    return per_sample(x.flatten(1).sum(1), x)
