"""What is compared: each method, and the few settings that it may choose from.

Settings are chosen on validation images by one rule for all (see `tuning`), from grids of about
the same size. Radii and margins are given in units of the problem's aim, the l2 radius at which
robustness is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from benchmarks.robust_training.objectives import InputGradientPenalty, MarginAtTheAttack
from margin_ext import AverageMarginLoss, FiniteDifference, Secant
from margin_ext.training import AdversarialTraining, Objective

__all__ = ["METHODS", "Method"]

Setting = dict[str, float]


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        title: For tables.
        objective: Built from the problem's aim and a setting.
        grid: The settings to choose from.
        longer: Epochs, as a multiple of the others': to compare at equal time.
        headline: Trained with every seed; others with the first.
    """

    title: str
    objective: Callable[[float, Setting], Any]
    grid: tuple[Setting, ...] = ({},)
    longer: float = 1.0
    headline: bool = False


def _grid(**values: tuple[float, ...]) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def _first_order(**options: Any) -> Callable[[float, Setting], Objective]:
    """The first-order margin, pushed up to tau (in units of the aim)."""

    def make(aim: float, setting: Setting) -> Objective:
        return Objective(AverageMarginLoss(mu=setting["mu"], tau=setting["tau"] * aim, **options))

    return make


def _authors(aim: float, setting: Setting) -> Objective:
    criterion = AverageMarginLoss(
        mu=0.1, tau=setting["tau"], margin="logit_gap", regularizer="negative_ramp"
    )
    return Objective(criterion, beta=setting["beta"])


def _gap_ramp(aim: float, setting: Setting) -> Objective:
    return Objective(AverageMarginLoss(mu=0.1, tau=setting["tau"], margin="logit_gap"))


def _adversarial(steps: int) -> Callable[[float, Setting], AdversarialTraining]:
    return lambda aim, setting: AdversarialTraining(setting["eps"] * aim, steps)


_BOUNDARY = {"gradient": FiniteDifference(unit="margin", step=1)}
_FIXED_STEP = {
    "gradient": FiniteDifference(unit="tau", step=0.5),
}


def _margin_at_the_attack(aim: float, setting: Setting) -> MarginAtTheAttack:
    eps = 0.75 * aim
    criterion = AverageMarginLoss(mu=setting["mu"], tau=eps, **_BOUNDARY)
    return MarginAtTheAttack(eps, 1, criterion=criterion)


_MARGIN_GRID = _grid(mu=(1.0, 2.0), tau=(1.25, 1.5))
_RADII = _grid(eps=(0.75, 1.0, 1.25))
# An l_inf margin is to an l2 margin about as an l2 norm's share of one pixel: tuned apart.
_LINF_GRID = _grid(mu=(1.0, 2.0), tau=(0.05, 0.075))

METHODS: dict[str, Method] = {
    "plain": Method(
        "cross-entropy", lambda aim, setting: Objective(nn.CrossEntropyLoss()), headline=True
    ),
    "boundary": Method(
        "first-order margin, differences at the boundary",
        _first_order(**_BOUNDARY),
        _MARGIN_GRID,
        headline=True,
    ),
    "secant": Method(
        "secant margin, 2 attack steps",
        _first_order(margin=Secant(steps=2, data_range=(0.0, 1.0)), warmup=300),
        _grid(mu=(2.0, 4.0), tau=(1.25, 1.5)),
        headline=True,
    ),
    "adversarial_7": Method(
        "adversarial training, 7 steps", _adversarial(7), _grid(eps=(0.75, 1.0)), headline=True
    ),
    "adversarial_1": Method("adversarial training, 1 step", _adversarial(1), _RADII, headline=True),
    "adversarial_2": Method(
        "adversarial training, 2 steps", _adversarial(2), _grid(eps=(0.75, 1.0)), headline=True
    ),
    "adversarial_1_longer": Method(
        "adversarial training, 1 step, 1.5 x epochs",
        _adversarial(1),
        _RADII,
        longer=1.5,
        headline=True,
    ),
    "authors_orthogonality": Method(
        "authors' regularizer and orthogonality",
        _authors,
        _grid(tau=(5.0, 40.0), beta=(1e-3, 1e-2)),
        headline=True,
    ),
    "double_backward": Method(
        "first-order margin, exact gradient",
        _first_order(gradient="double_backward"),
        _grid(mu=(1.0, 2.0), tau=(1.25, 1.5, 2.0)),
        headline=True,
    ),
    "fixed_step": Method(
        "first-order margin, differences over tau / 2",
        _first_order(**_FIXED_STEP),
        _MARGIN_GRID,
    ),
    "boundary_top_3": Method(
        "the same at the boundary, nearest of 3 classes",
        _first_order(classes=3, **_BOUNDARY),
        _MARGIN_GRID,
    ),
    "adversarial_1_margin": Method(
        "adversarial training, 1 step, and the first-order margin there",
        _margin_at_the_attack,
        _grid(mu=(0.5, 1.0)),
    ),
    "detached": Method(
        "first-order margin, norm detached", _first_order(gradient="detached"), _MARGIN_GRID
    ),
    "authors": Method("authors' regularizer", _authors, _grid(tau=(5.0, 40.0), beta=(0.0,))),
    "gap_ramp": Method("logit gap, ramp from 0 to tau", _gap_ramp, _grid(tau=(5.0, 10.0, 40.0))),
    "orthogonality": Method(
        "orthogonality only",
        lambda aim, setting: Objective(nn.CrossEntropyLoss(), beta=setting["beta"]),
        _grid(beta=(1e-3, 1e-2, 1e-1)),
    ),
    "penalty": Method(
        "input-gradient penalty",
        lambda aim, setting: InputGradientPenalty(setting["weight"]),
        _grid(weight=(0.1, 0.3, 1.0)),
    ),
    "linf_boundary": Method(
        "first-order l_inf margin, differences at the boundary",
        _first_order(p="inf", **_BOUNDARY),
        _LINF_GRID,
    ),
}
