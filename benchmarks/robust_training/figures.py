"""What robustness costs: robust accuracy against training time and against clean accuracy.

    python -m benchmarks.robust_training.figures PROBLEM [PROBLEM ...]

Draws docs/images/robust_training.png, a row a problem, from docs/results.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import environment
from benchmarks.robust_training.methods import METHODS
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.tables import runs_of
from margin_ext.output.figure_style import COLORS, GREY, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = environment.ROOT / "docs" / "results"
FIGURE = environment.ROOT / "docs" / "images" / "robust_training.png"


def color(key: str) -> str:
    """By family, so that a reader finds ours and the peers at once."""
    if key.startswith("adversarial"):
        return COLORS[1]
    if key in ("boundary", "secant", "boundary_top_3", "double_backward", "fixed_step", "detached"):
        return COLORS[0]
    if key == "linf_boundary":
        return COLORS[5]
    return GREY


def figure(problems: list[str], folder: Path = RESULTS) -> Figure:
    """Two panels a problem."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.2 * len(problems)), dpi=110, layout="constrained")
    panels = drawn.subplots(len(problems), 2, squeeze=False)
    for row, name in enumerate(problems):
        results = json.loads((folder / f"{name}.json").read_text())
        eps, aim = results["problem"]["eps"], results["problem"]["aim"]
        column = eps.index(aim)
        base = _mean([_seconds(run) for run in runs_of(results, "plain")])
        for number, key in enumerate(METHODS, 1):
            runs = runs_of(results, key)
            if not runs:
                continue
            robust = [run["l2"]["robust_accuracy"]["worst"][column] for run in runs]
            time = [_seconds(run) / base for run in runs]
            accuracy = [run["accuracy"] for run in runs]
            title = f"{number} {METHODS[key].title}"
            _points(panels[row, 0], time, robust, key, str(number), title)
            _points(panels[row, 1], accuracy, robust, key, str(number), title)
        plain(panels[row, 0], "training time, plain = 1", f"robust at l2 eps {aim:g}")
        plain(panels[row, 1], "clean accuracy", "")
        panels[row, 0].set_title(results["problem"]["title"], loc="left", fontsize=10)
        panels[row, 1].legend(
            fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
        )
    return drawn


def _points(ax: Axes, x: list[float], y: list[float], key: str, number: str, title: str) -> None:
    ax.scatter(x, y, s=16, color=color(key), alpha=0.45, linewidths=0)
    ax.annotate(
        number,
        (_mean(x), _mean(y)),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=9,
        color=color(key),
    )
    ax.plot([], [], linestyle="none", marker="o", markersize=4, color=color(key), label=title)


def _seconds(run: dict[str, Any]) -> float:
    return float(run["cpu_seconds_per_epoch"] * run["epochs"])


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("problems", nargs="+", choices=sorted(PROBLEMS))
    given = parser.parse_args()
    figure(given.problems).savefig(FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
