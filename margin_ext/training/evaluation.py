"""What is measured on every trained model."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from margin_ext.ranks import ALONE, Ranks
from margin_ext.training.words import check_words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from margin_ext.measurement import MarginReport

__all__ = ["Evaluation", "clean_accuracy", "margin_totals"]

# What projected gradient descent attacks. The search for the nearest adversarial example comes on
# top.
_LOSSES: Final = ("gap", "cross_entropy")


@dataclass(frozen=True)
class Evaluation:
    """First-order margins, attack distances and robust accuracy.

    Attributes:
        eps_attack: Radii of the attacks, in the unit of the images (pixel units with
            ``input_std``).
        attack_steps: Steps of projected gradient descent.
        attack_restarts: Starts of projected gradient descent.
        distance_steps: Steps of the search for the nearest adversarial example.
        measure_limit: Number of images of each part that are measured and attacked; None: all.
        part: The images that are reported on; choose settings on the validation images.
        measure_p: Threat norm of margins and attacks, 2 or infinity.
        data_range: Lowest and highest value of the images; attacks stay inside.
        input_std: The standard deviation(s) by which the images were divided.

    Example:
        >>> evaluation = Evaluation(eps_attack=(0.5, 1.0), part="validation")
        >>> evaluation.threat_keywords()
        {'p': 2.0, 'data_range': (0.0, 1.0), 'input_std': None}
        >>> found = evaluation.measure(model, train, validation)  # doctest: +SKIP
    """

    eps_attack: tuple[float, ...]
    attack_steps: int = 40
    attack_restarts: int = 1
    distance_steps: int = 100
    measure_limit: int | None = None
    part: Literal["test", "validation"] = "test"
    measure_p: float = 2.0
    data_range: tuple[float, float] = (0.0, 1.0)
    input_std: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_words(self)

    def settings(self) -> dict[str, Any]:
        """What must agree for measured values to be used again."""
        return asdict(self)

    def threat_keywords(self) -> dict[str, Any]:
        """The threat model, as keywords of ``measure`` and ``robust_accuracy``."""
        return {
            "p": self.measure_p,
            "data_range": self.data_range,
            "input_std": self.input_std,
        }

    def measure(
        self,
        model: nn.Module,
        train: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        progress: bool | None = None,
        ranks: Ranks = ALONE,
    ) -> dict[str, Any]:
        """Measure one model.

        Args:
            model: Left as it came.
            train: Images [N, ...] and labels [N] that it was trained on.
            held_out: Images and labels of the part that is reported.
            progress: Show bars; None: on a terminal.
            ranks: The processes that share the images.

        Returns:
            Plain values: "train" and "held_out" (totals of the margins, and for held_out each
            margin and the attack distances), "robust_accuracy".
        """
        from margin_ext.attacks import PGD
        from margin_ext.bounds import MinimumDistance
        from margin_ext.measurement import measure, robust_accuracy

        common: dict[str, Any] = {
            **self.threat_keywords(),
            "limit": self.measure_limit,
            "progress": progress,
            "ranks": ranks,
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
            self.eps_attack,
            attacks=[
                "nearest",
                *(
                    PGD(loss=loss, steps=self.attack_steps, restarts=self.attack_restarts)
                    for loss in _LOSSES
                ),
            ],
            report=on_held_out,
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
    """Accuracy, and minimum, average and median of the signed first-order margins."""
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
    """Accuracy on all images of a part; the model is left as it came.

    Example:
        >>> import torch
        >>> clean_accuracy(torch.nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
        0.6666666666666666
    """
    import torch

    from margin_ext.models.evaluation_mode import evaluation_mode

    images, labels = part
    right = 0
    with evaluation_mode(model), torch.no_grad():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            right += int((model(x).argmax(dim=1) == y).sum())
    return right / labels.shape[0]
