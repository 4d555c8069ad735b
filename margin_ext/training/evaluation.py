"""What is measured on every trained model of a comparison."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from margin_ext.attacks import PGD, AttackLoss
from margin_ext.bounds import MinimumDistance
from margin_ext.measurement import measure, robust_accuracy
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.training.checkpoint import told_fields

if TYPE_CHECKING:
    from torch import Tensor, nn

    from margin_ext.measurement import MarginReport

__all__ = ["DATA_RANGE", "Evaluation", "clean_accuracy", "margin_totals"]

DATA_RANGE = (0.0, 1.0)
# What projected gradient descent attacks.
LOSSES: tuple[AttackLoss, ...] = ("gap", "cross_entropy")

_FIRST_FIELDS = ("eps", "attack_steps", "distance_steps", "samples", "part")


@dataclass(frozen=True)
class Evaluation:
    """First-order margins, attack distances and robust accuracy.

    Attributes:
        eps: Radii of the balls, in the images' unit (pixel units with ``input_std``).
        attack_steps: Of projected gradient descent.
        distance_steps: Of the attack that looks for the nearest adversarial example.
        samples: The first so many images of each part; None: all.
        part: "test", or "validation" while settings are chosen.
        p: Threat norm of margins and attacks, 2 or infinity.
        restarts: Of projected gradient descent.
        data_range: Lowest and highest value of the images; attacks stay inside.
        input_std: The standard deviation(s) by which the images were divided.
    """

    eps: tuple[float, ...]
    attack_steps: int = 40
    distance_steps: int = 100
    samples: int | None = None
    part: str = "test"
    p: float = 2.0
    restarts: int = 1
    data_range: tuple[float, float] = DATA_RANGE
    input_std: float | tuple[float, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """What has to agree for measured values to be taken up."""
        return told_fields(self, _FIRST_FIELDS)

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
            "p": self.p,
            "data_range": self.data_range,
            "input_std": self.input_std,
            "limit": self.samples,
            "progress": progress,
        }
        with warnings.catch_warnings():
            # Samples without a gradient are counted in the totals ("infinite").
            warnings.filterwarnings("ignore", ".*no input gradient.*", UserWarning)
            on_train = measure(model, train, **common)
            distances = MinimumDistance(steps=self.distance_steps)
            on_held_out = measure(model, held_out, bounds=[distances], **common)
        robust = robust_accuracy(
            model,
            held_out,
            self.eps,
            attacks=[
                PGD(loss=loss, steps=self.attack_steps, restarts=self.restarts) for loss in LOSSES
            ],
            **common,
        )
        attacked = on_held_out.summary(quantity=distances.name)
        norm = on_held_out.first
        return {
            "train": margin_totals(on_train),
            "held_out": {
                **margin_totals(on_held_out),
                "attack_distance": {
                    "minimum": attacked.minimum,
                    "average": attacked.average,
                    "not_found": attacked.infinite,
                    "first_order_above_it": norm.share_above_upper(
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


def clean_accuracy(model: nn.Module, part: tuple[Tensor, Tensor], batch_size: int = 256) -> float:
    """Accuracy on all images of a part; the model is left as it came."""
    images, labels = part
    right = 0
    with evaluation_mode(model), torch.no_grad():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            right += int((model(x).argmax(dim=1) == y).sum())
    return right / labels.shape[0]
