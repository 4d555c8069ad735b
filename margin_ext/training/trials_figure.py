"""Trials in one picture: margins over the epochs, their histograms, robust accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from margin_ext.norms import norm_name
from margin_ext.output.figure_style import COLORS, GREY, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from margin_ext.training.trial import Trial

__all__ = ["trials_figure"]

_DOTTED = (0, (1.5, 1.5))

# A network that has not learned yet is so flat that its first-order margins are huge: the frame
# holds the epochs after this share of them.
_EARLY = 1 / 3


def trials_figure(trials: Sequence[Trial]) -> Figure:
    """Four panels; what is not there yet is left out.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'margin_ext[plot]'") from error
    figure = Figure(figsize=(10, 7.4), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2)
    held_out = trials[0].evaluation.part
    norm = norm_name(trials[0].evaluation.measure_p)
    colored = list(zip(trials, COLORS, strict=False))
    _history(panels[0, 0], colored, "average_margin", norm)
    panels[0, 0].set_title("Average margin over training", loc="left", fontsize=11)
    _history(panels[0, 1], colored, "minimum_margin", norm)
    panels[0, 1].set_title("Minimum margin over training", loc="left", fontsize=11)
    _histograms(panels[1, 0], colored, held_out, norm)
    panels[1, 0].set_title(f"Margins of the {held_out} images", loc="left", fontsize=11)
    _robust_accuracy(panels[1, 1], colored, norm)
    panels[1, 1].set_title("Robust accuracy", loc="left", fontsize=11)
    _line_styles(panels[0, 0], f"{held_out} images", "training images", "lower right")
    _legend(figure, colored)
    return figure


def _history(ax: Axes, colored: list[tuple[Trial, str]], quantity: str, norm: str) -> None:
    later: list[float] = []
    earlier: list[float] = []
    for trial, color in colored:
        for split, style in (("train", _DOTTED), ("held_out", "-")):
            epochs, values = trial.monitor.series(split, quantity)
            ax.plot(epochs, values, color=color, linestyle=style, linewidth=1.6)
            for epoch, value in zip(epochs, values, strict=True):
                early = epoch < _EARLY * trial.loop.recipe.epochs
                (earlier if early else later).append(value)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.locator_params(axis="x", integer=True)
    plain(ax, "epoch", f"first-order {norm} margin")
    if later:
        room = 0.06 * (max(later) - min(*later, 0.0))
        low = min(*later, 0.0) - room
        ax.set_ylim(low, max(later) + room)
        if min(earlier, default=0.0) < low:
            ax.set_xlabel("epoch (the first ones lie far below the frame)")


def _histograms(ax: Axes, colored: list[tuple[Trial, str]], held_out: str, norm: str) -> None:
    series = [
        (trial.measured["margins"], color) for trial, color in colored if trial.measured is not None
    ]
    plain(ax, f"first-order {norm} margin", f"{held_out} images")
    if not series:
        return
    pooled = np.concatenate([np.asarray(values) for values, _ in series])
    pooled = pooled[np.isfinite(pooled)]
    # The few outermost would squeeze the rest into a corner.
    low, high = np.quantile(pooled, [0.002, 0.998])
    bins = np.linspace(low, high, 36).tolist()
    for values, color in series:
        clipped = np.clip(values, low, high)
        ax.hist(clipped, bins=bins, color=color, alpha=0.13)
        ax.hist(clipped, bins=bins, histtype="step", color=color, linewidth=1.6)
        ax.axvline(float(np.mean(values)), color=color, linewidth=1.2, linestyle="--")
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.text(
        0.98, 0.97, "dashed: average\nleft of 0: misclassified", transform=ax.transAxes,
        ha="right", va="top", fontsize=9, color="#444444",
    )  # fmt: skip


def _robust_accuracy(ax: Axes, colored: list[tuple[Trial, str]], norm: str) -> None:
    plain(ax, f"{norm} radius eps of the attack", "accuracy under attack")
    ax.set_ylim(-0.02, 1.02)
    for trial, color in colored:
        if trial.measured is None:
            continue
        robust: dict[str, Any] = trial.measured["robust_accuracy"]
        radii = [0.0, *robust["eps"]]
        for attack, style in (("worst", "-"), ("cross_entropy", _DOTTED)):
            shares = np.array([robust["accuracy"], *robust["robust_accuracy"][attack]])
            ax.plot(radii, shares, color=color, linestyle=style, marker="o", markersize=3.5)
            if attack == "worst":
                error = 2 * np.sqrt(shares * (1 - shares) / robust["count"])
                ax.fill_between(
                    radii, shares - error, shares + error, color=color, alpha=0.13, lw=0
                )
    _line_styles(ax, "worst case (band: 2 s.e.)", "PGD on the cross-entropy alone", "lower left")


def _line_styles(
    ax: Axes, solid: str, dotted: str, place: Literal["lower left", "lower right"]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#444444", linestyle="-", label=solid),
        Line2D([], [], color="#444444", linestyle=_DOTTED, label=dotted),
    ]
    ax.legend(handles=handles, fontsize=9, loc=place, edgecolor="none", framealpha=0.8)


def _legend(figure: Figure, colored: list[tuple[Trial, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, linewidth=3, label=trial.title) for trial, color in colored
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=12
    )
