"""The losses whose training steps are compared, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext import AverageMarginLoss, Distance, FiniteDifference
from margin_ext.gradient_modes import Additive, gradient_mode_names
from margin_ext.threat import ThreatModel
from margin_ext.training import AdversarialTraining

__all__ = ["LOSSES", "PLAIN", "SECANT", "StepLoss"]

PLAIN, SECANT = "plain", "secant"
_EPS = 8 / 255
_RANGE = (0.0, 1.0)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepLoss:
    """One way to train.

    Attributes:
        title: For tables.
        build: Makes the loss of a batch from the network.
        cycle: Steps that are timed together, because they are not all alike.
    """

    title: str
    build: Callable[[nn.Module], Loss]
    cycle: int = 1


def _plain(model: nn.Module) -> Loss:
    return lambda inputs, target: cross_entropy(model(inputs), target)


def _margin(options: dict[str, Any], model: nn.Module) -> Loss:
    criterion = AverageMarginLoss(**{"p": 2, "mu": 1.0, "tau": 3.0, **options})
    return lambda inputs, target: criterion.run(model, inputs, target).loss


def _remembering(model: nn.Module) -> Loss:
    """Each search starts where the sample's last one ended."""
    margin = Distance(steps=1, memory=True, data_range=_RANGE)
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, margin=margin)

    def loss(inputs: Tensor, target: Tensor) -> Tensor:
        with margin.samples(torch.arange(len(target))):
            found: Tensor = criterion.run(model, inputs, target).loss
        return found

    return loss


def _adversarial(steps: int, model: nn.Module) -> Loss:
    threat = ThreatModel(p=math.inf, data_range=_RANGE)
    objective = AdversarialTraining(eps=_EPS, steps=steps, threat=threat)
    return lambda inputs, target: objective.run(model, inputs, target).loss


def _of(**options: Any) -> Callable[[nn.Module], Loss]:
    return partial(_margin, options)


_DIFFERENCE = "finite_difference"

LOSSES: dict[str, StepLoss] = {
    PLAIN: StepLoss("plain cross-entropy", _plain),
    **{mode: StepLoss(f"`{mode}`", _of(gradient=mode)) for mode in gradient_mode_names()},
    "central": StepLoss(
        "`finite_difference`, central", _of(gradient=FiniteDifference("central", 0.5, "tau"))
    ),
    "fraction": StepLoss(
        "`finite_difference`, fraction=1/4", _of(gradient=_DIFFERENCE, fraction=0.25)
    ),
    "every": StepLoss("`finite_difference`, every=4", _of(gradient=_DIFFERENCE, every=4), cycle=4),
    SECANT: StepLoss("`secant`, 2 steps", _of(margin="secant")),
    "distance_1": StepLoss(
        "`distance`, 1 projection", _of(margin=Distance(steps=1, data_range=_RANGE))
    ),
    "distance_memory": StepLoss("`distance`, 1 projection, memory", _remembering),
    "distance_2": StepLoss(
        "`distance`, 2 projections", _of(margin=Distance(steps=2, data_range=_RANGE))
    ),
    "additive": StepLoss("`additive`", _of(margin="additive", tau=0.5)),
    "additive_noise": StepLoss(
        "`additive`, noise", _of(margin=Additive(noise=1.0, data_range=_RANGE), tau=0.5)
    ),
    **{
        f"adversarial_{steps}": StepLoss(
            f"adversarial training, {steps} step{'s' * (steps > 1)}", partial(_adversarial, steps)
        )
        for steps in (1, 2, 7)
    },
}
