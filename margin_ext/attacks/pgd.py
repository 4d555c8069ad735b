"""Projected gradient descent on the logit gap or the cross-entropy inside an l_p ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, require_graph
from margin_ext.norms import dual_exponent
from margin_ext.threat import DataRange, ThreatModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin_ext.models.evaluation_mode import Model

__all__ = ["AttackLoss", "PGDSettings", "attack_gradient", "pgd"]

AttackLoss = Literal["gap", "cross_entropy"]


@dataclass(frozen=True)
class PGDSettings:
    """How an attack searches.

    Attributes:
        steps: Gradient steps of each restart.
        restarts: Independent starts; only samples that held so far are attacked again.
        relative_step: Step length in units of eps / steps.
        random_start: Start uniformly in the ball (inside the data range); otherwise the first
            restart starts at the sample itself.
        norm_floor: Gradients with a smaller dual norm take proportionally smaller steps, as in
            attack libraries that divide by max(norm, floor). 0: every step has full length.
        seed: Of the random starts.
    """

    steps: int = 40
    restarts: int = 1
    relative_step: float = 2.5
    random_start: bool = True
    norm_floor: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(
                f"steps and restarts must be at least 1, got {self.steps} and {self.restarts}"
            )
        if not self.relative_step > 0 or self.norm_floor < 0:
            raise ValueError("relative_step must be positive and norm_floor not negative")


def attack_gradient(
    model: Model, inputs: Tensor, target: Tensor, loss: AttackLoss
) -> tuple[Tensor, Tensor]:
    """Gap [B] and the gradient [B, ...] along which the sample gets worse.

    The loss is summed over the batch, so that each sample's gradient is its own. Logits are cast
    to at least float32 before the loss.
    """
    x = inputs.detach().requires_grad_()
    logits = checked_logits(model, x)
    gap = logit_gap(logits, target).gap
    require_graph(gap)
    if loss == "gap":
        objective = -gap.sum()
    else:
        objective = cross_entropy(logits.to(gap.dtype), target, reduction="sum")
    (grad,) = torch.autograd.grad(objective, x)
    return gap.detach(), grad


def pgd(
    model: Model,
    inputs: Tensor,
    target: Tensor,
    eps: float,
    *,
    p: float = 2,
    loss: AttackLoss = "gap",
    settings: PGDSettings | None = None,
    data_range: DataRange | None = None,
    input_std: float | Sequence[float] | Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Search the ball for a point with a gap of at most 0.

    Each step moves by relative_step * eps / steps along the dual direction of the gradient, then
    back into the ball and the data range. A sample is done as soon as any iterate is misclassified.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        target: [B].
        eps: Radius, in pixel units where input_std is given.
        p: 2 or infinity.
        loss: "gap" lowers the logit gap; "cross_entropy" raises the cross-entropy.
        settings: Steps, restarts, seed.
        data_range: Lowest and highest value in the units of inputs, as numbers or per channel.
        input_std: Standard deviation(s) of the loader's normalisation.
        indices: Of the samples in the whole data, for the random numbers; None: 0 to B - 1.

    Returns:
        robust [B] (bool: no adversarial example found) and the points [B, ...]: adversarial ones
        where found, elsewhere the inputs.
    """
    settings = settings or PGDSettings()
    check_ball(p, eps)
    threat = ThreatModel(p=p, data_range=data_range, input_std=input_std)
    numbers = list(range(inputs.shape[0])) if indices is None else list(indices)
    found = inputs.detach().clone()
    robust = torch.ones(inputs.shape[0], dtype=torch.bool, device=inputs.device)
    for restart in range(settings.restarts):
        active = robust.nonzero().squeeze(1)
        if not active.numel():
            break
        center = inputs[active].detach()
        radius = center.new_full((active.shape[0],), eps)
        x = center
        if settings.random_start or restart > 0:
            chosen = [numbers[i] for i in active.tolist()]
            x = threat.random_point(
                center, eps, seed=settings.seed, stream=f"pgd{restart}", indices=chosen
            )
        label = target[active]
        for step in range(settings.steps + 1):
            last = step == settings.steps
            if last:
                with torch.no_grad():
                    gap = logit_gap(checked_logits(model, x), label).gap
                grad = x
            else:
                gap, grad = attack_gradient(model, x, label, loss)
            held = gap > 0
            if not bool(held.all()):
                broken = active[~held]
                robust[broken] = False
                found[broken] = x[~held].detach()
                active, label, radius = active[held], label[held], radius[held]
                x, center, grad = x[held], center[held], grad[held]
            if last or not active.numel():
                break
            length = settings.relative_step / settings.steps * radius
            if settings.norm_floor > 0:
                norm = threat.dual_norm(grad)
                length = length * (norm / settings.norm_floor).clamp_max(1).to(length.dtype)
            x = threat.project(threat.step(grad, length, x), center, radius)
    return robust, found


def check_ball(p: float, eps: float) -> None:
    """Require p = 2 or infinity and a radius of at least 0."""
    dual_exponent(p)
    if float(p) not in (2.0, math.inf):
        raise ValueError(f"attacks are for p = 2 and p = inf, got {p}")
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"eps must be a number >= 0, got {eps}")
