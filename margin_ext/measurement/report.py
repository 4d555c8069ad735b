"""What was measured, in a form to read, save and plot."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margin_ext.norms import norm_name
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.finite_json import finite_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from margin_ext.bounds.bound import BoundKind

__all__ = ["MarginReport", "MarginSummary", "NormMargins"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class MarginSummary:
    """Totals over the samples whose margin is finite.

    Attributes:
        count: Number of finite margins.
        infinite: Number of samples left out: no class has an input gradient.
        minimum: Smallest margin, in the inputs' units (pixel units with input_std).
        average: Mean margin.
        average_correct: Mean over the correctly classified samples; NaN where there is none.
        quantiles: Quantile (0.01 to 0.99) to margin.
    """

    count: int
    infinite: int
    minimum: float
    average: float
    average_correct: float
    quantiles: dict[float, float]

    @staticmethod
    def of(values: NDArray[Any], correct: NDArray[np.bool_]) -> MarginSummary:
        """Summarise margins [N]."""
        finite = np.isfinite(values)
        kept = values[finite].astype(np.float64)
        right = values[finite & correct].astype(np.float64)
        nan = math.nan
        return MarginSummary(
            count=int(kept.size),
            infinite=int(values.size - kept.size),
            minimum=float(kept.min()) if kept.size else nan,
            average=float(kept.mean()) if kept.size else nan,
            average_correct=float(right.mean()) if right.size else nan,
            quantiles={q: float(np.quantile(kept, q)) if kept.size else nan for q in QUANTILES},
        )


@dataclass(frozen=True)
class NormMargins:
    """Margins of N samples in one threat norm.

    Attributes:
        p: Threat norm.
        margin: First-order margin [N], signed or unsigned as the report says.
        critical: The class that attains it [N].
        norm: Dual norm of that class's gap gradient [N].
        bounds: The distances [N] of the bounds that were measured, by name. 0 where the sample
            is already on the wrong side, infinite where a search found nothing.
        kinds: Whether each of them is an "upper" bound, a "lower" bound or an "estimate".
    """

    p: float
    margin: NDArray[Any]
    critical: NDArray[np.int64]
    norm: NDArray[Any]
    bounds: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    kinds: Mapping[str, BoundKind] = field(default_factory=dict)

    @property
    def nearest(self) -> NDArray[Any] | None:
        """The smallest upper bound of every sample [N]; None where none was measured."""
        upper = [values for name, values in self.bounds.items() if self.kinds[name] == "upper"]
        return np.minimum.reduce(upper) if upper else None

    def share_above_upper(self, values: NDArray[Any], correct: NDArray[np.bool_]) -> float:
        """Fraction of the correct samples on which values [N] exceed the smallest upper bound.

        Such a value is proven not to be a lower bound of that sample's margin.
        """
        upper = self.nearest
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
        norms: One entry a threat norm.
        signed: Measured from the label (negative where misclassified), or unsigned from the
            prediction, as the authors report.
        classes: The class rule, "all", "runner_up" or a number of classes.
        titles: The line of each bound in the table, by the bound's name.
        exact: The model is linear, so the first-order margins are its exact distances.
        settings: Everything else that the numbers depend on.
        seconds: Time it took, reloaded parts included.
    """

    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    gap: NDArray[Any]
    runner_up: NDArray[np.int64]
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
        """Share of correctly classified samples."""
        return float(self.correct.mean())

    @property
    def misclassified(self) -> float:
        """Share of misclassified samples."""
        return 1.0 - self.accuracy

    @property
    def minimum_margin(self) -> float:
        """Smallest first-order margin in the first norm."""
        return self.summary().minimum

    @property
    def average_margin(self) -> float:
        """Mean first-order margin in the first norm."""
        return self.summary().average

    def summary(self, p: float | str | None = None, quantity: str = "margin") -> MarginSummary:
        """Totals of one quantity: "margin", or the name of a bound that was measured."""
        norm = self.first if p is None else self[p]
        if quantity != "margin" and quantity not in norm.bounds:
            raise KeyError(f"{quantity!r} was not measured; ask for it with bounds=")
        values = norm.margin if quantity == "margin" else norm.bounds[quantity]
        return MarginSummary.of(values, self.correct)

    def to_dict(self, *, samples: bool = True) -> dict[str, Any]:
        """Plain Python values: totals, settings and, where asked for, every sample's values."""
        out: dict[str, Any] = {
            "count": len(self),
            "accuracy": self.accuracy,
            "misclassified": self.misclassified,
            "signed": self.signed,
            "classes": self.classes,
            "exact": self.exact,
            "average_gap": float(self.gap.astype(np.float64).mean()),
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "norms": {},
        }
        for p, norm in self.norms.items():
            entry: dict[str, Any] = {}
            for quantity in ("margin", *norm.bounds):
                total = self.summary(p, quantity)
                entry[quantity] = {
                    "count": total.count,
                    "infinite": total.infinite,
                    "minimum": total.minimum,
                    "average": total.average,
                    "average_correct": total.average_correct,
                    "quantiles": {str(q): value for q, value in total.quantiles.items()},
                }
                if norm.nearest is not None and norm.kinds.get(quantity) != "upper":
                    values = norm.margin if quantity == "margin" else norm.bounds[quantity]
                    entry[quantity]["share_above_upper"] = norm.share_above_upper(
                        values, self.sides
                    )
            out["norms"][norm_name(p)] = entry
        if samples:
            out["samples"] = {name: column.tolist() for name, column in self.columns().items()}
        return out

    @property
    def sides(self) -> NDArray[np.bool_]:
        """Samples on the right side of the reference class's boundary: all of them if unsigned."""
        return self.correct if self.signed else np.ones_like(self.correct)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every per-sample value by column name, such as ``margin_l2``."""
        columns: dict[str, NDArray[Any]] = {
            "target": self.target,
            "prediction": self.prediction,
            "correct": self.correct,
            "gap": self.gap,
            "runner_up": self.runner_up,
        }
        for p, norm in self.norms.items():
            name = norm_name(p)
            columns[f"margin_{name}"] = norm.margin
            columns[f"critical_{name}"] = norm.critical
            columns[f"norm_{name}"] = norm.norm
            for bound, values in norm.bounds.items():
                columns[f"{bound}_{name}"] = values
        return columns

    def save(self, path: str | Path) -> Path:
        """Write atomically to .json, .csv (one row a sample) or .npz, by the name's end.

        Raises:
            ValueError: The name ends in something else.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(finite_json(self.to_dict()), indent=1)
            write_atomically(path, lambda file: file.write(text.encode()))
        elif path.suffix == ".npz":
            summary = json.dumps(finite_json(self.to_dict(samples=False)))
            columns = {**self.columns(), "report_json": np.array(summary)}
            write_atomically(path, lambda file: np.savez_compressed(file, **columns))  # type: ignore[arg-type]
        elif path.suffix == ".csv":
            columns = self.columns()
            lines: list[str] = []
            writer = csv.writer(_Lines(lines))
            writer.writerow(["index", *columns])
            writer.writerows(
                [i, *row]
                for i, row in enumerate(zip(*(c.tolist() for c in columns.values()), strict=True))
            )
            write_atomically(path, lambda file: file.write("".join(lines).encode()))
        else:
            raise ValueError(f"a report is saved to .json, .csv or .npz, got {path.name}")
        return path

    def to_pandas(self) -> Any:
        """One row a sample, as a pandas DataFrame (needs pandas)."""
        import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return pd.DataFrame(self.columns())

    def histogram(self, p: float | str | None = None) -> Figure:
        """Histogram of the margins and of the bounds that were measured."""
        from margin_ext.measurement.figures import margin_histogram

        return margin_histogram(self, p)

    def scatter(self, p: float | str | None = None) -> Figure:
        """Gap against margin, one point a sample."""
        from margin_ext.measurement.figures import gap_against_margin

        return gap_against_margin(self, p)

    def __str__(self) -> str:
        from margin_ext.measurement.table import report_table

        return report_table(self)


class _Lines:
    """The little of a file that csv.writer needs."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, line: str) -> None:
        self._lines.append(line)
