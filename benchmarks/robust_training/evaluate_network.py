"""What is measured on every trained network, on images that it was not trained on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.robust_training.samples import bits, numbers
from benchmarks.robust_training.shrinking_pgd import ShrinkingPGD
from benchmarks.robust_training.strong_attacks import DecayingPGD
from margin_ext.attacks import Attack, AutoAttack, Nearest
from margin_ext.bounds import MinimumDistance
from margin_ext.measurement import RobustAccuracy, measure, robust_accuracy

__all__ = ["BOX", "Part", "Suite", "accuracy"]

BOX = (0.0, 1.0)
Part = tuple[Tensor, Tensor]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = [
            model(x).argmax(1) == y
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return float(torch.cat(right).float().mean())


@dataclass(frozen=True)
class Suite:
    """The attacks, which together give the worst case of each image.

    Attributes:
        targets: Classes toward which the search for the nearest adversarial example goes.
        count: Images attacked, the first so many.
        last: Attacks at the largest radius, each on the images that all before it left robust.
        steps: Of PGD with decaying steps.
        choice_steps: Of the search by which settings are chosen.
        distance: Finds the distances; None: ``MinimumDistance.thorough()`` with these targets.
    """

    targets: int
    count: int = 500
    last: tuple[Attack, ...] = (AutoAttack(parts=("apgd-ce", "apgd-t")), ShrinkingPGD())
    steps: int = 100
    choice_steps: int = 60
    distance: MinimumDistance | None = field(default=None)

    def choose_by(self, model: nn.Module, part: Part, eps: float) -> NDArray[np.bool_]:
        """Which images have no adversarial example within eps that a short search finds [N]."""
        targets = min(self.targets, 3)
        search = MinimumDistance(steps=self.choice_steps, restarts=1, targets=targets)
        found = self._attacked(model, self._few(part), (eps,), [Nearest(search=search)])
        return found.robust()[:, -1]

    def evaluate(self, model: nn.Module, part: Part, eps: tuple[float, ...]) -> dict[str, Any]:
        """Figures and the outcome of every image."""
        few = self._few(part)
        search = self.distance or MinimumDistance(steps=100, restarts=3, targets=self.targets)
        with warnings.catch_warnings():
            # Images without a gradient are counted: their margins are infinite.
            warnings.filterwarnings("ignore", ".*no input gradient.*", UserWarning)
            report = measure(
                model, few, bounds=[search], data_range=BOX, progress=False, batch_size=500
            )
        pgd = [DecayingPGD(loss=loss, steps=self.steps) for loss in ("gap", "cross_entropy")]
        result = robust_accuracy(
            model,
            few,
            eps,
            attacks=["nearest", *pgd],
            data_range=BOX,
            report=report,
            progress=False,
            batch_size=500,
        )
        before = result.robust()
        worst, left = self._after_the_last(model, few, eps[-1], before)
        distance = report.first[search.name]
        diagnosis = result.diagnosis
        return {
            "accuracy": accuracy(model, *part),
            "samples": {
                "correct": bits(report.correct),
                "distance": numbers(distance),
                "margin": numbers(report.margin),
                "worst": [bits(worst[:, i]) for i in range(len(eps))],
            },
            "left_by": {
                search.name: [float((distance > radius).mean()) for radius in eps],
                **{name: list(result.curve(name)) for name in result.distance},
                "all before AutoAttack": [float(x) for x in before.mean(axis=0)],
                **left,
            },
            "signs_of_masking": [] if diagnosis is None else list(diagnosis.findings),
            "settings": {
                search.name: search.settings(),
                **result.settings,
                **{attack.name: attack.settings() for attack in self.last},
            },
        }

    def _few(self, part: Part) -> Part:
        return part[0][: self.count], part[1][: self.count]

    def _attacked(
        self, model: nn.Module, part: Part, eps: tuple[float, ...], attacks: list[Attack]
    ) -> RobustAccuracy:
        return robust_accuracy(
            model,
            part,
            eps,
            attacks=attacks,
            data_range=BOX,
            diagnose_masking=False,
            progress=False,
            batch_size=500,
        )

    def _after_the_last(
        self, model: nn.Module, part: Part, eps: float, robust: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], dict[str, list[float]]]:
        """The outcomes [N, R] after the last attacks, and what is left after each of them."""
        worst, left = robust.copy(), {}
        for attack in self.last:
            held = np.flatnonzero(worst[:, -1])
            if len(held):
                chosen = torch.from_numpy(held)
                rest = part[0][chosen], part[1][chosen]
                found = self._attacked(model, rest, (eps,), [attack])
                worst[held, -1] = found.robust()[:, -1]
            left[attack.name] = [float(worst[:, -1].mean())]
        return worst, left
