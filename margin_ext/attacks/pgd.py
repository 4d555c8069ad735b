"""Projected gradient descent inside an l_p ball (Madry et al., arXiv 1706.06083)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from margin_ext.attacks.attack import ATTACKS, AttackResult
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.random_points import Draws
from margin_ext.threat import ThreatModel, check_radius, require_attackable

__all__ = ["PGD", "AttackLoss", "attack_gradient"]

AttackLoss = Literal["gap", "cross_entropy", "dlr"]

_TITLES: dict[AttackLoss, str] = {
    "gap": "PGD on the gap",
    "cross_entropy": "PGD on the cross-entropy",
    "dlr": "PGD on the logit ratio",
}


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steps of fixed length along the gradient, each followed by a projection into the ball.

    A sample is done as soon as any iterate is misclassified, and leaves the batch.

    Attributes:
        loss: "gap" lowers the logit gap; "cross_entropy" raises the cross-entropy, which stands
            still where the softmax is saturated; "dlr" lowers the gap over the difference of the
            largest and the third largest logit (Croce and Hein, arXiv 2003.01690; with two classes
            the gap).
        steps: Gradient steps of each restart.
        restarts: Independent starts; only samples that are still robust are attacked again.
        relative_step: Step length in units of eps / steps.
        random_start: Start uniformly in the ball (inside the data range); otherwise the first
            restart starts at the sample itself.
        norm_floor: Gradients with a smaller dual norm take proportionally smaller steps, as in
            attack libraries that divide by max(norm, floor). 0: every step has full length.
        seed: Seed of the random starts.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0], [1.1, 1.0]]), torch.tensor([0, 0])
        >>> PGD()(model, x, label, 0.5, threat=ThreatModel(p=2)).robust
        tensor([ True, False])
    """

    loss: AttackLoss = "gap"
    steps: int = 40
    restarts: int = 1
    relative_step: float = 2.5
    random_start: bool = True
    norm_floor: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in _TITLES:
            raise ValueError(f"loss must be from {', '.join(_TITLES)}, got {self.loss!r}")
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(
                f"steps and restarts must be at least 1, got {self.steps} and {self.restarts}"
            )
        if not self.relative_step > 0 or self.norm_floor < 0:
            raise ValueError("relative_step must be positive and norm_floor not negative")

    @property
    def name(self) -> str:
        """The loss."""
        return self.loss

    @property
    def title(self) -> str:
        """Such as "PGD on the gap"."""
        return _TITLES[self.loss]

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where the attack does not exist for this norm."""
        require_attackable(threat)

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on."""
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> AttackResult:
        """Search the ball of radius eps for a point with a gap of at most 0.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            target: [B].
            eps: Radius, in pixel units where the threat model has input_std.
            threat: The norm, and the range of the data.
            indices: Indices of the samples in the whole data; None: 0 to B - 1.
        """
        self.check(threat)
        check_radius(eps)
        numbers = list(range(inputs.shape[0])) if indices is None else list(indices)
        found = inputs.detach().clone()
        robust = torch.ones(inputs.shape[0], dtype=torch.bool, device=inputs.device)
        for restart in range(self.restarts):
            active = robust.nonzero().squeeze(1)
            if not active.numel():
                break
            center = inputs[active].detach()
            x = center
            if self.random_start or restart > 0:
                chosen = [numbers[i] for i in active.tolist()]
                x = threat.random_point(center, eps, Draws(self.seed, f"pgd{restart}", chosen))
            self._descend(model, x, center, target[active], eps, threat, active, robust, found)
        return AttackResult(robust, found)

    def _descend(
        self,
        model: Model,
        x: Tensor,
        center: Tensor,
        label: Tensor,
        eps: float,
        threat: ThreatModel,
        active: Tensor,
        robust: Tensor,
        found: Tensor,
    ) -> None:
        """One restart from x; writes what breaks into robust and found."""
        radius = center.new_full((active.shape[0],), eps)
        for step in range(self.steps + 1):
            last = step == self.steps
            if last:
                with torch.no_grad():
                    gap = logit_gap(checked_logits(model, x), label).gap
                grad = x
            else:
                gap, grad = attack_gradient(model, x, label, self.loss)
            left = gap > 0
            if not bool(left.all()):
                broken = active[~left]
                robust[broken] = False
                found[broken] = x[~left].detach()
                active, label, radius = active[left], label[left], radius[left]
                x, center, grad = x[left], center[left], grad[left]
            if last or not active.numel():
                return
            length = self.relative_step / self.steps * radius
            if self.norm_floor > 0:
                norm = threat.dual_norm(grad)
                length = length * (norm / self.norm_floor).clamp_max(1).to(length.dtype)
            x = threat.attack_step(x, grad, length, center=center, radius=radius, sparse=True)


for _loss in get_args(AttackLoss):
    ATTACKS.makers[_loss] = partial(PGD, loss=_loss)


def attack_gradient(
    model: Model,
    inputs: Tensor,
    target: Tensor,
    loss: AttackLoss,
    *,
    keep_from_underflow: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gap [B] and the gradient [B, ...] along which the sample gets worse.

    The loss is summed over the batch, so that each sample's gradient is its own. Logits are cast
    to at least float32 before the loss.

    Args:
        model: Maps inputs to logits [B, C].
        inputs: [B, ...].
        target: [B].
        loss: What gets worse.
        keep_from_underflow: Where logits are float16, divide each cross-entropy by the probability
            of all classes but the label. The direction is the same, and float16 can hold it.
    """
    x = inputs.detach().requires_grad_()
    logits = checked_logits(model, x)
    gap = logit_gap(logits, target).gap
    require_graph(gap)
    if loss == "dlr" and logits.shape[1] > 2:
        largest = logits.to(gap.dtype).topk(3, dim=1).values
        objective = -(gap / (largest[:, 0] - largest[:, 2])).sum()
    elif loss != "cross_entropy":
        objective = -gap.sum()
    else:
        losses = cross_entropy(logits.to(gap.dtype), target, reduction="none")
        if keep_from_underflow and logits.dtype == torch.float16 and target.dim() == 1:
            losses = losses / _others_probability(logits.detach().to(gap.dtype), target)
        objective = losses.sum()
    (grad,) = torch.autograd.grad(objective, x)
    return gap.detach(), grad


def _others_probability(logits: Tensor, target: Tensor) -> Tensor:
    """The probability [B] of all classes but the target; not 1 - p, which rounds to 0."""
    label = target.clamp_min(0).unsqueeze(1)  # ignored samples have no loss
    others = logits.softmax(1).scatter(1, label, 0.0).sum(1)
    return others.clamp_min(torch.finfo(others.dtype).tiny)
