"""What was measured, in a form to read, save and plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margin_ext.measurement.drawing import draw
from margin_ext.measurement.margin_summary import MarginSummary
from margin_ext.measurement.report_files import save_report
from margin_ext.measurement.report_table import report_table
from margin_ext.measurement.robustness_curve import RobustnessCurve
from margin_ext.norms import norm_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from margin_ext.bounds.bound import BoundKind

__all__ = ["MarginReport", "NormMargins"]

# The columns of a report: those of a sample, and those of a sample in one norm, each of which is
# followed by the norm's name, such as margin_l2. Bounds add a column of their own name.
SAMPLE_COLUMNS = (
    "target",
    "prediction",
    "correct",
    "gap",
    "runner_up",
    "gradients",
    "directions",
    "by_differences",
)
NORM_COLUMNS = ("margin", "nearest_class", "nearest_rank", "norm")


def norm_columns(p: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of one norm by their names in the report.

    Example:
        >>> norm_columns(2.0, {"margin": 0.5, "certified": 0.4})
        {'margin_l2': 0.5, 'certified_l2': 0.4}
    """
    return {f"{name}_{norm_name(p)}": column for name, column in values.items()}


@dataclass(frozen=True)
class NormMargins:
    """Margins of N samples in one threat norm.

    Attributes:
        p: Threat norm.
        margin: First-order margin [N], signed or unsigned as the report says.
        nearest_class: The class that attains it [N].
        nearest_rank: Its place among the other classes by logit [N]; 1 is the runner-up.
        norm: Dual norm of that class's gap gradient [N].
        bounds: The distances [N] of the bounds that were measured, by name. 0 where the sample
            is already on the wrong side, infinite where a search found nothing.
        kinds: Whether each of them is an "upper" bound, a "lower" bound or an "estimate".

    Example:
        >>> from margin_ext import measure
        >>> data = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> report = measure(torch.nn.Linear(2, 2), data, bounds=["certified"], progress=False)
        >>> norm = report[2]
        >>> norm.quantities, norm["certified"].shape
        (('margin', 'certified'), (1,))
    """

    p: float
    margin: NDArray[Any]
    nearest_class: NDArray[np.int64]
    nearest_rank: NDArray[np.int64]
    norm: NDArray[Any]
    bounds: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    kinds: Mapping[str, BoundKind] = field(default_factory=dict)

    @staticmethod
    def of(
        p: float, columns: Mapping[str, NDArray[Any]], kinds: Mapping[str, BoundKind]
    ) -> NormMargins:
        """The margins among the columns of a report, and the bounds of these names and kinds."""

        def of(names: Iterable[str]) -> dict[str, Any]:
            return {name: columns[f"{name}_{norm_name(p)}"] for name in names}

        return NormMargins(p, **of(NORM_COLUMNS), bounds=of(kinds), kinds=kinds)

    def __getitem__(self, quantity: str) -> NDArray[Any]:
        """Values [N] of "margin", or of a bound that was measured."""
        if quantity == "margin":
            return self.margin
        if quantity not in self.bounds:
            raise KeyError(f"{quantity!r} was not measured; ask for it with bounds=")
        return self.bounds[quantity]

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names that ``[]`` takes."""
        return ("margin", *self.bounds)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every value of a sample by the name that it has in the report."""
        own = {name: getattr(self, name) for name in NORM_COLUMNS}
        return norm_columns(self.p, {**own, **self.bounds})

    @property
    def smallest_upper(self) -> NDArray[Any] | None:
        """The smallest upper bound of every sample [N]; None where none was measured."""
        upper = [values for name, values in self.bounds.items() if self.kinds[name] == "upper"]
        return np.minimum.reduce(upper) if upper else None

    def share_beyond(self, classes: int) -> float:
        """Fraction of the samples whose nearest class is not among so many largest other logits.

        Only these classes, ``measure(classes=...)``, would give them too large a margin.
        """
        return float((self.nearest_rank > classes).mean())

    def share_above_upper(self, values: NDArray[Any], correct: NDArray[np.bool_]) -> float:
        """Fraction of the correct samples on which values [N] exceed the smallest upper bound.

        Such a value is proven not to be a lower bound of that sample's margin.
        """
        upper = self.smallest_upper
        if upper is None:
            return math.nan
        kept = correct & np.isfinite(upper)
        # A rounding above the distance proves nothing.
        above = values[kept] > upper[kept] * (1 + 1e-4)
        return float(above.mean()) if above.size else math.nan


@dataclass(frozen=True)
class MarginReport:
    """Margins of a data set; printed, it is a table.

    Attributes:
        target: Labels [N].
        prediction: Predicted classes [N].
        correct: Whether the gap to every class is positive [N].
        gap: Logit gap from the reference class [N]: the label, or unsigned the prediction.
        runner_up: The class of the gap [N].
        gradients: How many classes' gradients were computed [N].
        directions: Random directions that showed the other classes to be farther [N]; 0: nothing
            is left to chance.
        by_differences: These rest on finite differences, whose error was estimated [N].
        norms: One entry a threat norm.
        signed: Measured from the label (negative where misclassified), or unsigned from the
            prediction, as the authors report.
        classes: The class rule, "all", "runner_up" or a number of classes.
        titles: The line of each bound in the table, by the bound's name.
        exact: The model is linear, so the first-order margins are its exact distances.
        settings: Everything else that the numbers depend on.
        seconds: Time it took, reloaded parts included.

    Example:
        >>> from margin_ext import measure
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> data = torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 0])
        >>> report = measure(model, data, p=2, progress=False)
        >>> report.accuracy, report.exact
        (0.5, True)
        >>> report.margin.tolist() == report.columns()["margin_l2"].tolist()
        True
        >>> round(report.minimum_margin, 4), report.summary().misclassified
        (-0.7071, 1)
        >>> report.save("report.csv")  # doctest: +SKIP
    """

    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    gap: NDArray[Any]
    runner_up: NDArray[np.int64]
    gradients: NDArray[np.int64]
    directions: NDArray[np.int64]
    by_differences: NDArray[np.bool_]
    norms: Mapping[float, NormMargins]
    signed: bool
    classes: str | int
    titles: Mapping[str, str]
    exact: bool
    settings: Mapping[str, Any]
    seconds: float

    def __len__(self) -> int:
        return int(self.target.shape[0])

    def __getitem__(self, p: float | str) -> NormMargins:
        try:
            return self.norms[float(p)]
        except KeyError:
            raise KeyError(f"measured norms: {', '.join(map(norm_name, self.norms))}") from None

    def __str__(self) -> str:
        return report_table(self)

    @property
    def first(self) -> NormMargins:
        """Margins in the first norm that was asked for."""
        return next(iter(self.norms.values()))

    @property
    def margin(self) -> NDArray[Any]:
        """First-order margins [N] in the first norm."""
        return self.first.margin

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified samples."""
        return float(self.correct.mean())

    @property
    def misclassified(self) -> float:
        """Fraction of misclassified samples."""
        return 1.0 - self.accuracy

    @property
    def average_gap(self) -> float:
        """Mean logit gap."""
        return float(self.gap.astype(np.float64).mean())

    @property
    def minimum_margin(self) -> float:
        """Smallest first-order margin in the first norm."""
        return self.summary().minimum

    @property
    def average_margin(self) -> float:
        """Mean first-order margin in the first norm."""
        return self.summary().average

    @property
    def sides(self) -> NDArray[np.bool_]:
        """Samples on the right side of the reference class's boundary: all of them if unsigned."""
        return self.correct if self.signed else np.ones_like(self.correct)

    def summary(self, p: float | str | None = None, quantity: str = "margin") -> MarginSummary:
        """Totals of one quantity: "margin", or the name of a bound that was measured."""
        norm = self.first if p is None else self[p]
        return MarginSummary.of(norm[quantity], self.correct)

    def title(self, quantity: str) -> str:
        """What a table or a figure calls a quantity."""
        return self.titles.get(quantity, "first-order margin")

    def robustness_curve(
        self,
        radii: ArrayLike | None = None,
        *,
        p: float | str | None = None,
        quantity: str | None = None,
    ) -> RobustnessCurve:
        """Fraction of the samples whose distance exceeds each radius, with its band.

        From upper bounds, such as minimum distances, it is an upper bound on the robust accuracy
        at every radius at once; from certified distances a lower bound.

        Args:
            radii: Where to evaluate; None: 101 radii up to the largest finite distance.
            p: Threat norm; None: the first.
            quantity: A bound that was measured, by name; None: the smallest upper bound.

        Raises:
            KeyError: It was not measured.
        """
        norm = self.first if p is None else self[p]
        distance = norm.smallest_upper if quantity is None else norm[quantity]
        if distance is None:
            raise KeyError('no upper bound was measured; ask for bounds=["minimum_distance"]')
        # A misclassified sample withstands nothing, whatever the distance to its predicted class.
        return RobustnessCurve.of(np.where(self.correct, distance, 0.0), radii)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every per-sample value by column name, such as ``margin_l2``."""
        columns = {name: getattr(self, name) for name in SAMPLE_COLUMNS}
        for norm in self.norms.values():
            columns.update(norm.columns())
        return columns

    def to_dict(self, *, samples: bool = True) -> dict[str, Any]:
        """Plain Python values: totals, settings and, where asked for, every sample's values."""
        out: dict[str, Any] = {
            "count": len(self),
            "accuracy": self.accuracy,
            "misclassified": self.misclassified,
            "signed": self.signed,
            "classes": self.classes,
            "exact": self.exact,
            "average_gap": self.average_gap,
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "norms": {
                norm_name(p): {name: self._totals(norm, name) for name in norm.quantities}
                for p, norm in self.norms.items()
            },
        }
        if samples:
            out["samples"] = {name: column.tolist() for name, column in self.columns().items()}
        return out

    def _totals(self, norm: NormMargins, quantity: str) -> dict[str, Any]:
        totals = self.summary(norm.p, quantity).to_dict()
        if norm.smallest_upper is not None and norm.kinds.get(quantity) != "upper":
            totals["share_above_upper"] = norm.share_above_upper(norm[quantity], self.sides)
        return totals

    def save(self, path: str | Path) -> Path:
        """Write atomically to .json, .csv (one row a sample) or .npz, by the name's end.

        Raises:
            ValueError: The name ends in something else.
        """
        return save_report(self, Path(path))

    def to_pandas(self) -> Any:
        """One row a sample, as a pandas DataFrame (needs pandas)."""
        import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return pd.DataFrame(self.columns())

    def histogram(self, p: float | str | None = None) -> Figure:
        """Histogram of the margins and of the bounds that were measured."""
        return draw("margin_histogram", self, p)

    def scatter(self, p: float | str | None = None) -> Figure:
        """Gap against margin, one point a sample."""
        return draw("gap_against_margin", self, p)

    def figure(self, p: float | str | None = None) -> Figure:
        """Fraction of the samples beyond each distance: the robustness curve with its band."""
        return draw("robustness_curves", self, p)
