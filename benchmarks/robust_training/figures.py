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

import numpy as np

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


_NUMBERS = {key: number for number, key in enumerate(METHODS, 1)}
# Of the highest point; what lies lower is left out, or it would squeeze the rest together.
_SHOWN = 0.7
_RADIUS = 11  # from a point to the middle of its number, in screen points


def figure(folder: Path = RESULTS) -> Figure:
    """Two panels a problem that has results, and one legend."""
    from matplotlib.figure import Figure

    found = {}
    for name in PROBLEMS:
        path = folder / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            if results["runs"]:
                found[name] = results
    count = max(len(found), 1)
    drawn = Figure(figsize=(12, 3.9 * count + 2.6), dpi=110, layout="constrained")
    panels = drawn.subplots(count, 2, squeeze=False)
    for row, results in zip(panels, found.values(), strict=False):
        _cost(row[0], results)
        _settings(row[1], results)
    tried = {key for results in found.values() for key, some in results["tuning"].items() if some}
    _legend(drawn, tried)
    return drawn


def _cost(ax: Axes, results: dict[str, Any]) -> None:
    aim = results["problem"]["aim"]
    rows = {key: row for key, row in rows_of(results).items() if row.time is not None}
    least = _SHOWN * max((row.mean_robust for row in rows.values()), default=0.0)
    shown = {key: row for key, row in rows.items() if row.mean_robust >= least}
    for key, row in shown.items():
        shape, color = _STYLES[METHODS[key].group]
        ax.scatter([row.time], [row.mean_robust], marker=shape, s=46, color=color, zorder=3)
        low, high = min(row.robust[1]), max(row.robust[1])
        ax.plot([row.time] * 2, [low, high], color=color, linewidth=1)
    if REFERENCE in rows:
        ax.axhline(rows[REFERENCE].mean_robust, color=GREY, linewidth=0.8, linestyle=":")
    if not rows:
        ax.text(0.5, 0.5, "training times not measured yet", ha="center", transform=ax.transAxes)
        ax.set_xticks([])
    ax.margins(x=0.1, y=0.12)
    plain(ax, "training time, plain = 1", f"worst case at l2 radius {aim:g}, test images")
    _title(ax, f"{results['problem']['title']}: test images", len(rows) - len(shown))
    _write_numbers(ax, {key: (row.time or 0.0, row.mean_robust) for key, row in shown.items()})


def _settings(ax: Axes, results: dict[str, Any]) -> None:
    rows = rows_of(results)
    known = [one for tried in results["tuning"].values() for one in tried]
    learned = max((one["accuracy"] for one in known), default=0.0) / 2
    least = _SHOWN * max((one["robust"] for one in known), default=0.0)
    left_out, best = 0, {}
    for key, method in METHODS.items():
        tried = results["tuning"].get(key, [])
        shown = [one for one in tried if one["accuracy"] > learned and one["robust"] >= least]
        left_out += len(tried) - len(shown)
        if not shown:
            continue
        shape, color = _STYLES[method.group]
        accuracy, robust = ([one[name] for one in shown] for name in ("accuracy", "robust"))
        ax.plot(accuracy, robust, color=color, linewidth=0.8, zorder=1)
        chosen = rows[key].setting if key in rows else None
        for one in shown:
            ax.scatter(
                [one["accuracy"]],
                [one["robust"]],
                marker=shape,
                s=40,
                facecolors=color if one["setting"] == chosen else "white",
                edgecolors=color,
                zorder=2,
            )
        top = max(shown, key=lambda one: float(one["robust"]))
        best[key] = (float(top["accuracy"]), float(top["robust"]))
    ax.margins(x=0.1, y=0.12)
    plain(ax, "clean accuracy, validation images", "robust by a short search")
    ax.locator_params(axis="x", nbins=5)
    _title(ax, "every setting tried, validation images; filled: chosen", left_out)
    _write_numbers(ax, best)


def _title(ax: Axes, text: str, left_out: int) -> None:
    more = f" ({left_out} far below are left out)" if left_out else ""
    ax.set_title(textwrap.fill(text + more, 80), loc="left", fontsize=9)


def _write_numbers(ax: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Each method's number beside its point, in the direction in which most room is left."""
    if not points:
        return
    ax.autoscale_view()
    places = ax.transData.transform(list(points.values()))
    radius = _RADIUS * ax.get_figure(root=True).dpi / 72
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    taken = list(places)
    for (key, point), place in zip(points.items(), places, strict=True):
        others = np.array([one for one in taken if one is not place]).reshape(-1, 2)
        candidates = place + radius * directions
        apart = np.linalg.norm(candidates[:, None] - others, axis=2)
        room = apart.min(axis=1, initial=4 * radius)
        way = directions[room.argmax()]
        taken.append(place + radius * way)
        ax.annotate(
            str(_NUMBERS[key]),
            point,
            xytext=tuple(_RADIUS * way),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
        )


def _legend(drawn: Figure, keys: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for key, method in METHODS.items():
        if key in keys:
            shape, color = _STYLES[method.group]
            label = f"{_NUMBERS[key]} {method.title}"
            handles.append(Line2D([], [], linestyle="none", marker=shape, color=color, label=label))
    if handles:
        drawn.legend(
            handles=handles, fontsize=7, ncols=2, loc="outside lower center", frameon=False
        )


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    write_figure(figure(), FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
