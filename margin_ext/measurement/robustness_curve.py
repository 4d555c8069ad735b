"""Which fraction of the samples withstands perturbations of each size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["RobustnessCurve"]

# Of a normal distribution: 95 % lie within.
_DEVIATIONS = 1.96


@dataclass(frozen=True)
class RobustnessCurve:
    """The fraction of samples whose distance exceeds each radius.

    Attributes:
        radii: [R], ascending.
        fraction: [R]; falls with the radius. At 0 it is the accuracy.
        low: Lower end of each fraction's 95 % band [R], by the number of samples (Wilson 1927).
        high: Upper end [R].
        count: Number of samples.
    """

    radii: NDArray[np.float64]
    fraction: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: int

    @staticmethod
    def of(distance: NDArray[Any], radii: ArrayLike | None = None) -> RobustnessCurve:
        """The curve of distances [N], 0 where a sample is misclassified, infinite where unbroken.

        Args:
            distance: In the inputs' units (pixel units with input_std).
            radii: Where to evaluate; None: 101 radii up to the largest finite distance.

        Example:
            >>> RobustnessCurve.of(np.array([0.0, 1.0, 2.0, np.inf]), [0.0, 1.5]).fraction.tolist()
            [0.75, 0.5]
        """
        values = distance.astype(np.float64)
        if radii is None:
            finite = values[np.isfinite(values)]
            at = np.linspace(0.0, float(finite.max(initial=0.0)) or 1.0, 101)
        else:
            at = np.sort(np.atleast_1d(np.asarray(radii, dtype=np.float64)))
        count = values.size
        beyond = count - np.searchsorted(np.sort(values), at, side="right")
        fraction = beyond / count
        z = _DEVIATIONS**2 / count
        middle = (fraction + z / 2) / (1 + z)
        half = np.sqrt(fraction * (1 - fraction) * z + z * z / 4) / (1 + z)
        return RobustnessCurve(at, fraction, middle - half, middle + half, count)
