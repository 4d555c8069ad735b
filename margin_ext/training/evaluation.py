"""What is measured on every trained model of a comparison."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from margin_ext.measurement import measure, robust_accuracy
from margin_ext.measurement.minimum_distance import DistanceAttack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from margin_ext.measurement import MarginReport

__all__ = ["DATA_RANGE", "Evaluation", "margin_totals"]

DATA_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Evaluation:
    """First-order l2 margins, attack distances and robust accuracy.

    Attributes:
        eps: Radii of the l2 balls, in the images' unit (black 0, white 1).
        attack_steps: Of projected gradient descent.
        distance_steps: Of the attack that looks for the nearest adversarial example.
        samples: The first so many images of each part; None: all.
        part: "test", or "validation" while settings are chosen.
    """

    eps: tuple[float, ...]
    attack_steps: int = 40
    distance_steps: int = 100
    samples: int | None = None
    part: str = "test"

    def measure(
        self,
        model: nn.Module,
        train: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        progress: bool | None = None,
    ) -> dict[str, Any]:
        """Measure one model.

        Args:
            model: Left as it came.
            train: Images and labels that it was trained on.
            held_out: Images and labels of the part that is reported.
            progress: Show bars; None: on a terminal.

        Returns:
            Plain values: "train" and "held_out" (totals of the margins, and for held_out each
            margin and the attack distances), "robust_accuracy".
        """
        common: dict[str, Any] = {
            "data_range": DATA_RANGE,
            "limit": self.samples,
            "progress": progress,
        }
        with warnings.catch_warnings():
            # Samples without a gradient are counted in the totals ("infinite").
            warnings.filterwarnings("ignore", ".*no input gradient.*", UserWarning)
            on_train = measure(model, train, **common)
            distances = DistanceAttack(steps=self.distance_steps)
            on_held_out = measure(model, held_out, bounds=("attack",), attack=distances, **common)
        robust = robust_accuracy(model, held_out, self.eps, steps=self.attack_steps, **common)
        attacked = on_held_out.summary(quantity="attack")
        norm = on_held_out.first
        return {
            "train": margin_totals(on_train),
            "held_out": {
                **margin_totals(on_held_out),
                "attack_distance": {
                    "minimum": attacked.minimum,
                    "average": attacked.average,
                    "not_found": attacked.infinite,
                    "first_order_above_it": norm.share_above_attack(
                        norm.margin, on_held_out.correct
                    ),
                },
            },
            "margins": norm.margin.tolist(),
            "robust_accuracy": robust.to_dict(),
        }


def margin_totals(report: MarginReport) -> dict[str, Any]:
    """Accuracy and the totals of the signed first-order margins."""
    total = report.summary()
    return {
        "count": len(report),
        "accuracy": report.accuracy,
        "minimum_margin": total.minimum,
        "average_margin": total.average,
        "average_margin_correct": total.average_correct,
        "median_margin": total.quantiles[0.5],
        "infinite": total.infinite,
        "average_gap": float(report.gap.astype("float64").mean()),
    }
