"""Totals of margins or distances."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QUANTILES", "MarginSummary"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class MarginSummary:
    """Totals of one quantity over all samples.

    An average can only be taken over finite values, so a network whose samples an attack does not
    break can have a lower average than one that it breaks: read it with ``infinite`` and
    ``misclassified``. Median and quantiles count infinite values as infinite and are comparable.

    Attributes:
        count: Number of finite values.
        infinite: Number of infinite ones, left out of the averages: no adversarial example was
            found, or no class has an input gradient.
        misclassified: Number of misclassified samples. In the average of a signed margin they
            count as negative, in that of a distance as 0.
        minimum: Smallest finite value, in the inputs' units (pixel units with input_std).
        average: Mean of the finite values.
        average_correct: Mean over the correctly classified samples; NaN where there is none.
        quantiles: Quantile (0.01 to 0.99) to value, over all samples.
    """

    count: int
    infinite: int
    misclassified: int
    minimum: float
    average: float
    average_correct: float
    quantiles: dict[float, float]

    @staticmethod
    def of(values: NDArray[Any], correct: NDArray[np.bool_]) -> MarginSummary:
        """Summarise values [N] of samples that are classified correctly or not [N].

        Example:
            >>> correct = np.array([False, True, True])
            >>> total = MarginSummary.of(np.array([0.0, 1.0, np.inf]), correct)
            >>> total.average, total.average_correct, total.median, total.infinite
            (0.5, 1.0, 1.0, 1)
        """
        finite = np.isfinite(values)
        kept = values[finite].astype(np.float64)
        right = values[finite & correct].astype(np.float64)
        return MarginSummary(
            count=int(kept.size),
            infinite=int(values.size - kept.size),
            misclassified=int((~correct).sum()),
            minimum=float(kept.min()) if kept.size else math.nan,
            average=float(kept.mean()) if kept.size else math.nan,
            average_correct=float(right.mean()) if right.size else math.nan,
            quantiles={q: _quantile(values.astype(np.float64), q) for q in QUANTILES},
        )

    @property
    def median(self) -> float:
        """The median over all samples."""
        return self.quantiles[0.5]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; quantiles by their text."""
        values = asdict(self)
        values["quantiles"] = {str(q): value for q, value in self.quantiles.items()}
        return values


def _quantile(values: NDArray[np.float64], q: float) -> float:
    """As numpy's, and defined where values are infinite."""
    if not values.size:
        return math.nan
    if np.isfinite(values).all():
        return float(np.quantile(values, q))
    ordered = np.sort(values)
    place = q * (values.size - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if low == high or np.isneginf(low):
        return float(low)
    return float(low + (high - low) * (place % 1))
