"""Figures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.samples import METHODS

_COLORS = {
    "fused": "#0b6e99",
    "reference": "#c2571a",
    "compiled": "#7a5195",
    "clone": "#6b6b6b",
}
# So that a figure printed in black and white still tells them apart.
_MARKERS = {"fused": "o", "reference": "s", "compiled": "^", "clone": "D"}
_LABELS = {
    "fused": "fused",
    "reference": "eager reference",
    "compiled": "torch.compile",
    "clone": "clone of the same bytes",
}
_AXES = {
    "B": "batch size B",
    "D": "input size D",
    "C": "classes C",
    "threads": "threads",
}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def seconds(contender: dict[str, Any]) -> float | None:
    """Median time of a contender, by the best method that there is."""
    times = contender["times"]
    return next((times[m]["median"] for m in METHODS if m in times), None)


def scaling(cases: list[dict[str, Any]], path: Path) -> None:
    """Time against each quantity that grows, one panel each."""
    panels = [name for name in _AXES if any(case["grows"] == name for case in cases)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(panels), 3.0), layout="constrained")
        for place, name in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            chosen = [case for case in cases if case["grows"] == name]
            for contender in ("reference", "fused", "clone"):
                points = [(c["value"], seconds(c["contenders"][contender])) for c in chosen]
                known = [(value, time * 1e3) for value, time in points if time is not None]
                axes.plot(
                    [value for value, _ in known],
                    [time for _, time in known],
                    marker=_MARKERS[contender],
                    markersize=3.5,
                    color=_COLORS[contender],
                    linestyle="--" if contender == "clone" else "-",
                    label=_LABELS[contender],
                )
            axes.set_xscale("log", base=2 if name in ("B", "threads") else 10)
            axes.set_yscale("log")
            axes.set_xlabel(_AXES[name])
            if name == "threads":
                axes.set_xticks([c["value"] for c in chosen], [str(c["value"]) for c in chosen])
                axes.minorticks_off()
            if place == 0:
                axes.set_ylabel("ms, forward and backward")
                figure.legend(loc="outside upper center", ncols=3)
        _save(figure, path)


def times_of_yardstick(cases: list[dict[str, Any]], path: Path) -> None:
    """Points: how many copies (clones) of the same bytes each contender takes, by shape."""
    yardstick = cases[0]["yardstick"]
    contenders = [
        name
        for name in ("fused", "compiled", "reference")
        if any(name in case["over_yardstick"] for case in cases)
    ]
    apart = 0.6 / max(len(contenders), 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 1.2 + 0.36 * len(cases)), layout="constrained")
        axes = figure.add_subplot()
        for place, name in enumerate(contenders):
            rows = [
                (row + (place - (len(contenders) - 1) / 2) * apart, case["over_yardstick"][name])
                for row, case in enumerate(cases)
                if name in case["over_yardstick"]
            ]
            axes.errorbar(
                [ratio["median"] for _, ratio in rows],
                [row for row, _ in rows],
                xerr=[
                    [ratio["median"] - ratio["low"] for _, ratio in rows],
                    [ratio["high"] - ratio["median"] for _, ratio in rows],
                ],
                fmt=_MARKERS[name],
                markersize=5,
                elinewidth=1,
                color=_COLORS[name],
                label=_LABELS[name],
            )
        axes.axvline(1, color=_COLORS["clone"], linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(cases)), [case["name"].split(": ", 1)[-1] for case in cases])
        axes.invert_yaxis()
        axes.set_xlabel(f"times a {yardstick} of the same bytes (dashed: 1), with quartiles")
        figure.legend(loc="outside upper center", ncols=3)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date of the file's making, the same results give the same bytes.
    figure.savefig(path, dpi=150, metadata={"Software": None})
