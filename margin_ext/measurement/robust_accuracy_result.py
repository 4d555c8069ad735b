"""What ``robust_accuracy`` found, in a form to read, save and plot."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margin_ext.measurement.drawing import draw
from margin_ext.output.json_file import write_json
from margin_ext.output.text_table import text_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from margin_ext.measurement.masking import MaskingDiagnosis
    from margin_ext.threat import ThreatModel

__all__ = ["RobustAccuracy", "just_above"]


def just_above(radii: Sequence[float]) -> NDArray[np.float64]:
    """The radii [R] and a rounding: a point that is farther by a rounding lies within."""
    return np.array(radii, dtype=np.float64) * (1 + 1e-6)


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under attack; printed, it is a table with the diagnosis below.

    Attributes:
        threat: The norm, the data range and the units of the radii.
        eps: Radii, ascending, in the inputs' units (pixel units with input_std).
        correct: Clean correctness [N].
        distance: For each attack the distance of its nearest adversarial example [N]; infinite
            where it found none. It looks no nearer than the radii ask for.
        further: The same [N] for what else was at hand: a report, the diagnosis.
        titles: The column of each attack in the table.
        random: Whether random points of the sphere are all classified correctly, [N, len(eps)].
        diagnosis: Signs of gradient masking; None where not asked for.
        settings: Settings of every attack, the seed and the threat model.

    Example:
        >>> from margin_ext import robust_accuracy
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> data = torch.tensor([[3.0, 1.0], [1.1, 1.0]]), torch.tensor([0, 0])
        >>> quiet = {"diagnose_masking": False, "progress": False}
        >>> found = robust_accuracy(model, data, [0.01, 0.5], **quiet)
        >>> found.accuracy, found.curve()
        (1.0, (1.0, 0.5))
        >>> found.robust()
        array([[ True,  True],
               [ True, False]])
    """

    threat: ThreatModel
    eps: tuple[float, ...]
    correct: NDArray[np.bool_]
    distance: Mapping[str, NDArray[np.float64]]
    further: NDArray[np.float64]
    titles: Mapping[str, str]
    random: NDArray[np.bool_]
    diagnosis: MaskingDiagnosis | None
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.correct.shape[0])

    @property
    def accuracy(self) -> float:
        """Clean accuracy."""
        return float(self.correct.mean())

    def curve(self, attack: str = "worst") -> tuple[float, ...]:
        """Robust accuracy at each radius under one attack by name, "random" or "worst".

        "worst" counts a sample as robust where everything failed: every attack, every random
        point, the report and the diagnosis. A point within a radius counts at that radius, also
        where an attack on a larger one found it.
        """
        return tuple(float(fraction) for fraction in self.robust(attack).mean(axis=0))

    def robust(self, attack: str = "worst") -> NDArray[np.bool_]:
        """Whether each sample is robust at each radius [N, len(eps)], as `curve` counts it."""
        if attack == "random":
            return self.random
        distance = (
            np.minimum.reduce([*self.distance.values(), self.further])
            if attack == "worst"
            else self.distance[attack]
        )
        robust = self.correct[:, None] & (distance[:, None] > just_above(self.eps))
        return robust & self.random if attack == "worst" else robust

    def standard_error(self, fraction: float) -> float:
        """Of a robust accuracy, from the number of samples."""
        return math.sqrt(max(fraction * (1 - fraction), 0.0) / len(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, without the samples."""
        return {
            "p": self.threat.name,
            "eps": list(self.eps),
            "count": len(self),
            "accuracy": self.accuracy,
            "robust_accuracy": {
                name: list(self.curve(name)) for name in (*self.distance, "random", "worst")
            },
            "diagnosis": None if self.diagnosis is None else dataclasses.asdict(self.diagnosis),
            "settings": dict(self.settings),
        }

    def save(self, path: str | Path) -> Path:
        """Write the totals atomically as JSON."""
        path = Path(path)
        write_json(path, self.to_dict())
        return path

    def figure(self) -> Figure:
        """Robust accuracy against the radius, one line an attack."""
        return draw("robust_accuracy_curves", {"": self})

    def __str__(self) -> str:
        marked = self.diagnosis is not None and self.diagnosis.cross_entropy_masked
        marks = {"cross_entropy": " (!)" if marked else ""}
        header = [
            f"eps ({self.threat.name})",
            *(self.titles[name] + marks.get(name, "") for name in self.distance),
            "random points",
            "worst",
            "s.e.",
        ]
        rows = []
        worst = self.curve()
        for i, eps in enumerate(self.eps):
            shares = [self.curve(name)[i] for name in (*self.distance, "random")] + [worst[i]]
            error = self.standard_error(worst[i])
            rows.append([f"{eps:g}", *(f"{share:.4f}" for share in shares), f"{error:.4f}"])
        lines = [
            f"{len(self)} samples, clean accuracy {self.accuracy:.4f}",
            "",
            text_table(header, rows),
            *(f"{name}: {_words(value)}" for name, value in self.settings.items()),
        ]
        if self.diagnosis is not None:
            lines += ["", str(self.diagnosis)]
        return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)
