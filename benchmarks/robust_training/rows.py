"""What the tables, the figure and the goals read from a problem's results: one row a method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.robust_training.epoch_timing import over_plain
from benchmarks.robust_training.methods import METHODS, Setting
from benchmarks.robust_training.samples import read_bits, read_numbers

__all__ = ["Row", "rows_of"]


@dataclass(frozen=True)
class Row:
    """One method with its chosen setting.

    Attributes:
        key: Of the method.
        setting: The chosen one.
        end_of_grid: "largest" or "smallest" where it is that of all tried, or else "".
        seeds: Those that were run.
        accuracy: On all test images, one value a seed.
        robust: At half the aim and at the aim, one value a seed.
        held: Whether each image holds at the aim [seeds, N].
        average_distance: Of the images with an adversarial example, 0 where misclassified.
        median_distance: Of all images, infinite where there is none.
        not_found: Images without an adversarial example, over all seeds.
        tangent_over_distance: Median over the correct images with an adversarial example.
        validated: Robustness on validation images, by which the setting was chosen.
        times: Training time over plain training's, by the number of the session.
    """

    key: str
    setting: Setting
    end_of_grid: str
    seeds: list[int]
    accuracy: list[float]
    robust: tuple[list[float], list[float]]
    held: Mapping[int, NDArray[np.bool_]]
    average_distance: float
    median_distance: float
    not_found: int
    tangent_over_distance: float
    validated: float
    times: Mapping[int, float]

    @property
    def time(self) -> float | None:
        """Training time over plain training's, the median of the sessions; None: not measured."""
        return statistics.median(self.times.values()) if self.times else None

    def time_over(self, other: Row) -> float | None:
        """Training time over another method's, the median of the sessions that both are in."""
        both = [self.times[number] / other.times[number] for number in self.sessions_with(other)]
        return statistics.median(both) if both else None

    def sessions_with(self, other: Row) -> list[int]:
        """The timing sessions that both are in."""
        return sorted(self.times.keys() & other.times.keys())

    @property
    def mean_accuracy(self) -> float:
        return statistics.fmean(self.accuracy)

    @property
    def mean_robust(self) -> float:
        """Worst case at the aim."""
        return statistics.fmean(self.robust[1])

    def minus(self, other: Row) -> tuple[float, float]:
        """Difference of the worst cases at the aim, and its standard error, paired over images.

        Over the seeds that both have.
        """
        common = [seed for seed in self.seeds if seed in other.seeds]
        if not common:
            return math.nan, math.nan
        each = np.mean(
            [self.held[s].astype(float) - other.held[s].astype(float) for s in common], axis=0
        )
        return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))

    def more_accurate_than(self, other: Row) -> float:
        """Difference of the clean accuracies over the seeds that both have."""
        theirs = dict(zip(other.seeds, other.accuracy, strict=True))
        pairs = zip(self.seeds, self.accuracy, strict=True)
        differences = [ours - theirs[seed] for seed, ours in pairs if seed in theirs]
        return statistics.fmean(differences) if differences else math.nan


def rows_of(results: Mapping[str, Any]) -> dict[str, Row]:
    """The rows in the order of `METHODS`; without the methods that were not run."""
    found = {}
    for key in METHODS:
        runs = _runs(results, key)
        if runs:
            found[key] = _row(key, runs, results["tuning"][key], results.get("timing", []))
    return found


def _runs(results: Mapping[str, Any], key: str) -> dict[int, Any]:
    """By seed; those with the setting of the first, because a setting may be chosen anew."""
    named = {}
    for name, run in results.get("runs", {}).items():
        word, seed = name.rsplit(" ", 1)
        if word == key:
            named[int(seed)] = run
    first = named[min(named)]["setting"] if named else None
    return {seed: named[seed] for seed in sorted(named) if named[seed]["setting"] == first}


def _end_of_grid(setting: Setting, tried: Sequence[Setting]) -> str:
    """By the first of the values, where several were tried."""
    for name, value in setting.items():
        values = {other[name] for other in tried if name in other}
        if len(values) > 1:
            return {max(values): "largest", min(values): "smallest"}.get(value, "")
    return ""


def _row(
    key: str,
    runs: Mapping[int, Any],
    tried: Sequence[Mapping[str, Any]],
    timing: Sequence[Mapping[str, Any]],
) -> Row:
    samples = [run["samples"] for run in runs.values()]
    worst = [[read_bits(text) for text in one["worst"]] for one in samples]
    correct = np.concatenate([read_bits(one["correct"]) for one in samples])
    distance = np.concatenate([read_numbers(one["distance"]) for one in samples])
    margin = np.concatenate([read_numbers(one["margin"]) for one in samples])
    known = np.isfinite(distance)
    both = correct & known & (distance > 0)
    setting = next(iter(runs.values()))["setting"]
    return Row(
        key=key,
        setting=setting,
        end_of_grid=_end_of_grid(setting, [one["setting"] for one in tried]),
        seeds=list(runs),
        accuracy=[run["accuracy"] for run in runs.values()],
        robust=(
            [float(outcome[0].mean()) for outcome in worst],
            [float(outcome[1].mean()) for outcome in worst],
        ),
        held={seed: outcome[1] for seed, outcome in zip(runs, worst, strict=True)},
        average_distance=float(distance[known].mean()),
        median_distance=float(np.quantile(distance, 0.5, method="lower")),
        not_found=int((~known).sum()),
        tangent_over_distance=float(np.median(margin[both] / distance[both])),
        validated=next(one["robust"] for one in tried if one["setting"] == setting),
        times=over_plain(timing, key, setting),
    )
