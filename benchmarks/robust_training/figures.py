"""What robustness costs: the worst case against training time, and against clean accuracy.

    python -m benchmarks.robust_training.figures

Draws docs/images/robust_training.png, a row a problem that was run, from docs/results. Left, test
images: methods with their chosen settings. Right, validation images: every setting tried.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import environment
from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.rows import rows_of
from margin_ext.output.figure_style import COLORS, GREY, plain, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = environment.ROOT / "docs" / "results"
FIGURE = environment.ROOT / "docs" / "images" / "robust_training.png"
# A shape and a colour for each group, so that the figure can be read in grey too.
_STYLES = {
    "peer": ("o", GREY),
    "tangent": ("^", COLORS[4]),
    "secant": ("s", COLORS[2]),
    "distance": ("D", COLORS[0]),
}


def figure(folder: Path = RESULTS) -> Figure:
    """Two panels a problem that has results."""
    from matplotlib.figure import Figure

    found = {}
    for name in PROBLEMS:
        path = folder / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            if results["runs"]:
                found[name] = results
    drawn = Figure(figsize=(12, 4.4 * max(len(found), 1)), dpi=110, layout="constrained")
    panels = drawn.subplots(max(len(found), 1), 2, squeeze=False)
    for row, results in zip(panels, found.values(), strict=False):
        _cost(row[0], results)
        _settings(row[1], results)
    return drawn


def _cost(ax: Axes, results: dict[str, Any]) -> None:
    aim = results["problem"]["aim"]
    rows = rows_of(results)
    for number, (key, method) in enumerate(METHODS.items(), 1):
        row = rows.get(key)
        if row is None or row.time is None:
            continue
        shape, color = _STYLES[method.group]
        ax.scatter([row.time], [row.mean_robust], marker=shape, s=46, color=color, zorder=3)
        low, high = min(row.robust[1]), max(row.robust[1])
        ax.plot([row.time] * 2, [low, high], color=color, linewidth=1)
        ax.annotate(
            str(number),
            (row.time, row.mean_robust),
            # Left for peers, so that the numbers of near points do not meet.
            xytext=(-13, 1) if method.group == "peer" else (5, 4),
            textcoords="offset points",
            fontsize=9,
        )
    if REFERENCE in rows:
        ax.axhline(rows[REFERENCE].mean_robust, color=GREY, linewidth=0.8, linestyle=":")
    if all(row.time is None for row in rows.values()):
        ax.text(0.5, 0.5, "training times not measured yet", ha="center", transform=ax.transAxes)
        ax.set_xticks([])
    ax.margins(x=0.1)
    plain(ax, "training time, plain = 1", f"worst case at l2 radius {aim:g}, test images")
    ax.set_title(textwrap.fill(results["problem"]["title"], 50), loc="left", fontsize=10)


def _settings(ax: Axes, results: dict[str, Any]) -> None:
    rows = rows_of(results)
    known = [one["accuracy"] for tried in results["tuning"].values() for one in tried]
    # Others would squeeze all that did learn into a corner.
    learned = max(known, default=0.0) / 2
    for number, (key, method) in enumerate(METHODS.items(), 1):
        tried = [one for one in results["tuning"].get(key, []) if one["accuracy"] > learned]
        if not tried:
            continue
        shape, color = _STYLES[method.group]
        accuracy = [one["accuracy"] for one in tried]
        robust = [one["robust"] for one in tried]
        ax.plot(accuracy, robust, color=color, linewidth=0.8, zorder=1)
        chosen = rows[key].setting if key in rows else None
        for one in tried:
            ax.scatter(
                [one["accuracy"]],
                [one["robust"]],
                marker=shape,
                s=40,
                facecolors=color if one["setting"] == chosen else "white",
                edgecolors=color,
                zorder=2,
            )
        end = max(tried, key=lambda one: float(one["robust"]))
        ax.annotate(
            str(number),
            (end["accuracy"], end["robust"]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=9,
        )
        ax.plot(
            [], [], linestyle="none", marker=shape, color=color, label=f"{number} {method.title}"
        )
    plain(ax, "clean accuracy, validation images", "robust by a short search")
    ax.locator_params(axis="x", nbins=5)
    title, left_out = "every setting tried; filled: chosen", sum(one <= learned for one in known)
    if left_out:
        title += f"\n({left_out} that did not learn are left out)"
    ax.set_title(title, loc="left", fontsize=10)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    write_figure(figure(), FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
