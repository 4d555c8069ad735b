"""Figures of margins. Matplotlib is an extra, imported only when a figure is drawn.

Every function draws into given axes, or makes a figure of its own; none touches pyplot's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from margin_ext.norms import norm_name
from margin_ext.output.figure_style import (
    COLORS,
    GREY,
    LINES,
    MARKERS,
    axes_or_new,
    clipped_histogram,
    legend_below,
    new_axes,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from margin_ext.measurement.monitor import MarginMonitor
    from margin_ext.measurement.report import MarginReport
    from margin_ext.measurement.robust_accuracy_result import RobustAccuracy

__all__ = [
    "gap_against_margin",
    "margin_histogram",
    "margin_history",
    "robust_accuracy_curves",
    "robustness_curves",
]


def margin_histogram(
    report: MarginReport, p: float | str | None = None, ax: Axes | None = None
) -> Figure:
    """Histograms of the first-order margin and of every bound that was measured."""
    figure, ax = axes_or_new(ax)
    norm = report.first if p is None else report[p]
    names = norm.quantities[: len(COLORS)]
    sign = "signed" if report.signed else "unsigned"
    sign += f", {int((~report.correct).sum())} misclassified"
    what = f"{norm_name(norm.p)} margin ({sign})"
    clipped_histogram(ax, [norm[name] for name in names], what, "samples", share=0.001, bins=60)
    for color, line, marker, name in zip(COLORS, LINES, MARKERS, names, strict=False):
        values = norm[name][np.isfinite(norm[name])]
        title = f"{report.title(name)}, mean {values.mean() if values.size else np.nan:.3g}"
        left_out = norm[name].size - values.size
        if left_out:
            title += f" ({left_out} not found)"
        ax.plot([], [], color=color, linestyle=line, marker=marker, label=title)
    legend_below(ax)
    return figure


def gap_against_margin(
    report: MarginReport, p: float | str | None = None, ax: Axes | None = None
) -> Figure:
    """Scatter of logit gap against first-order margin: how far the one tells of the other."""
    figure, ax = axes_or_new(ax)
    norm = report.first if p is None else report[p]
    kept = np.isfinite(norm.margin)
    right = report.correct & kept
    wrong = ~report.correct & kept
    ax.scatter(report.gap[right], norm.margin[right], s=5, alpha=0.5, color=COLORS[0], lw=0)
    ax.scatter(report.gap[wrong], norm.margin[wrong], s=14, color=COLORS[1], marker="x", lw=1)
    ax.scatter([], [], s=12, color=COLORS[0], label="correct")
    ax.scatter([], [], s=14, color=COLORS[1], marker="x", lw=1, label="misclassified")
    plain(ax, "logit gap", f"first-order {norm_name(norm.p)} margin")
    legend_below(ax)
    return figure


def robustness_curves(
    report: MarginReport, p: float | str | None = None, ax: Axes | None = None
) -> Figure:
    """Fraction of the samples beyond each distance, for every bound that was measured.

    The robust accuracy lies below the attack's curve and above the certified one. Shaded: 95 %
    bands. Without bounds the curve is that of the first-order margins, which is an estimate.
    """
    figure, ax = axes_or_new(ax)
    norm = report.first if p is None else report[p]
    for color, line, name in zip(COLORS, LINES, norm.bounds or ("margin",), strict=False):
        curve = report.robustness_curve(p=norm.p, quantity=name)
        ax.step(
            curve.radii, curve.fraction, where="post", color=color, linestyle=line,
            linewidth=1.6, label=report.title(name),
        )  # fmt: skip
        ax.fill_between(curve.radii, curve.low, curve.high, color=color, alpha=0.12, step="post")
    ax.set_ylim(-0.02, 1.02)
    plain(ax, f"{norm_name(norm.p)} distance", "fraction of samples beyond")
    legend_below(ax)
    return figure


def margin_history(
    monitors: MarginMonitor | Mapping[str, MarginMonitor], figure: Figure | None = None
) -> Figure:
    """The paper's figure: minimum and average margin over training, side by side.

    Args:
        monitors: One monitor, or several trainings by name to compare.
        figure: Where to draw (two axes); None: a new one.
    """
    several = monitors if isinstance(monitors, Mapping) else {"": monitors}
    if figure is None:
        figure, (left, right) = new_axes(2)
    else:
        left, right = figure.subplots(1, 2)
    color = 0
    norm = "l2"
    for name, monitor in several.items():
        norm = norm_name(monitor.p)
        for split in monitor.splits:
            label = ", ".join(part for part in (name, split if split != "data" else "") if part)
            style = {"color": COLORS[color % len(COLORS)], "markersize": 4}
            style["marker"] = MARKERS[color % len(MARKERS)]
            left.plot(*monitor.series(split, "minimum_margin"), label=label, **style)
            right.plot(*monitor.series(split, "average_margin"), label=label, **style)
            color += 1
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.axhline(0, color=GREY, linewidth=0.8)
    plain(left, "epoch", f"minimum first-order {norm} margin")
    plain(right, "epoch", f"average first-order {norm} margin")
    if any(line.get_label() and str(line.get_label())[0] != "_" for line in right.lines):
        legend_below(right)
    return figure


def robust_accuracy_curves(results: Mapping[str, RobustAccuracy], ax: Axes | None = None) -> Figure:
    """Robust accuracy against the radius: solid under the first attack, dotted under others.

    The clean accuracy is the point at radius 0. Shaded: two standard errors.
    """
    figure, ax = axes_or_new(ax)
    p = 2.0
    for color, marker, (name, result) in zip(COLORS, MARKERS, results.items(), strict=False):
        p = result.threat.p
        radii = [0.0, *result.eps]
        for attack in result.distance:
            shares = np.array([result.accuracy, *result.curve(attack)])
            label = ", ".join(part for part in (name, result.titles[attack]) if part)
            first = attack == next(iter(result.distance))
            ax.plot(
                radii, shares, color=color, linestyle="-" if first else ":", marker=marker,
                markersize=4, label=label,
            )  # fmt: skip
            if first:
                error = np.array([2 * result.standard_error(float(share)) for share in shares])
                ax.fill_between(radii, shares - error, shares + error, color=color, alpha=0.12)
    ax.set_ylim(-0.02, 1.02)
    plain(ax, f"radius of the {norm_name(p)} ball", "accuracy under attack")
    legend_below(ax)
    return figure
