"""The results of one problem as Markdown."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.robust_training.methods import METHODS

__all__ = ["runs_of", "tables"]


def tables(path: Path) -> str:
    """One row a method, means over the seeds and half the range."""
    results = json.loads(path.read_text())
    eps = results["problem"]["eps"]
    linf = results["problem"]["linf_eps"]
    header = [
        "training",
        "setting",
        "seeds",
        "accuracy",
        "min / average margin (first-order)",
        "average attack distance",
        *(f"robust at {radius:g}" for radius in eps),
        f"library attack at {eps[-1]:g}",
        *(f"l_inf {radius:.3g}" for radius in linf),
        "time",
    ]
    lines = [f"**{results['problem']['title']}**", "", _row(header), _row(["---"] * len(header))]
    plain = runs_of(results, "plain")
    seconds = statistics.fmean(run["cpu_seconds_per_epoch"] * run["epochs"] for run in plain)
    for key, method in METHODS.items():
        runs = runs_of(results, key)
        if runs:
            lines.append(_row([method.title, *_cells(runs, seconds)]))
    return "\n".join(lines)


def runs_of(results: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A method's runs in the order of their seeds."""
    found = results["runs"]
    return [found[name] for name in sorted(found) if name.rsplit(" ", 1)[0] == key]


def _cells(runs: list[dict[str, Any]], plain_seconds: float) -> list[str]:
    def mean(values: list[float], digits: int = 3) -> str:
        middle = f"{statistics.fmean(values):.{digits}f}"
        if len(values) == 1:
            return middle
        return f"{middle} ± {(max(values) - min(values)) / 2:.{digits}f}"

    setting = ", ".join(f"{name} {value:g}" for name, value in runs[0]["setting"].items())
    worst = [run["l2"]["robust_accuracy"]["worst"] for run in runs]
    linf = [run["linf"]["robust_accuracy"]["worst"] for run in runs]
    first = [run["first_order"] for run in runs]
    seconds = [run["cpu_seconds_per_epoch"] * run["epochs"] / plain_seconds for run in runs]
    return [
        setting or "-",
        str(len(runs)),
        mean([run["accuracy"] for run in runs], 4),
        f"{mean([f['minimum'] for f in first], 2)} / {mean([f['average'] for f in first], 2)}",
        mean([run["attack_distance"]["average"] for run in runs], 2),
        *(mean([row[i] for row in worst]) for i in range(len(worst[0]))),
        mean([run["library"]["robust_accuracy"][-1] for run in runs]),
        *(mean([row[i] for row in linf]) for i in range(len(linf[0]))),
        mean(seconds, 1),
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
