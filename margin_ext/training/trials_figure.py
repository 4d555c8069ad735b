"""Trials in one picture: margins over the epochs, their histograms, robust accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from margin_ext.norms import norm_name
from margin_ext.output.figure_style import COLORS, GREY, MARKERS, clipped_histogram, plain

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
    figure = Figure(figsize=(10, 7.8), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2)
    held_out = trials[0].evaluation.part
    norm = norm_name(trials[0].evaluation.measure_p)
    _history(panels[0, 0], trials, "average_margin", norm)
    panels[0, 0].set_title("Average margin over training", loc="left", fontsize=11)
    _history(panels[0, 1], trials, "minimum_margin", norm)
    panels[0, 1].set_title("Minimum margin over training", loc="left", fontsize=11)
    _histograms(panels[1, 0], trials, held_out, norm)
    panels[1, 0].set_title(f"Margins of the {held_out} images", loc="left", fontsize=11, y=1.06)
    _robust_accuracy(panels[1, 1], trials, norm)
    panels[1, 1].set_title("Robust accuracy", loc="left", fontsize=11, y=1.06)
    _line_styles(panels[0, 0], f"{held_out} images", "training images")
    _legend(figure, trials)
    return figure


def _styled(trials: Sequence[Trial]) -> list[tuple[Trial, str, str]]:
    """Each trial with its colour and marker."""
    return list(zip(trials, COLORS, MARKERS, strict=False))


def _history(ax: Axes, trials: Sequence[Trial], quantity: str, norm: str) -> None:
    later: list[float] = []
    earlier: list[float] = []
    for trial, color, marker in _styled(trials):
        for split, style in (("train", _DOTTED), ("held_out", "-")):
            epochs, values = trial.monitor.series(split, quantity)
            ax.plot(
                epochs, values, color=color, linestyle=style, linewidth=1.6, marker=marker,
                markersize=4, markevery=max(1, len(epochs) // 8),
            )  # fmt: skip
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


def _histograms(ax: Axes, trials: Sequence[Trial], held_out: str, norm: str) -> None:
    series = [
        np.array(() if trial.measured is None else trial.measured["margins"], dtype=np.float64)
        for trial in trials[: len(COLORS)]
    ]
    what = f"first-order {norm} margin; left of 0: misclassified"
    clipped_histogram(ax, series, what, f"{held_out} images", share=0.002, bins=35)


def _robust_accuracy(ax: Axes, trials: Sequence[Trial], norm: str) -> None:
    plain(ax, f"{norm} radius eps of the attack", "accuracy under attack")
    ax.set_ylim(-0.02, 1.02)
    for trial, color, marker in _styled(trials):
        if trial.measured is None:
            continue
        robust: dict[str, Any] = trial.measured["robust_accuracy"]
        radii = [0.0, *robust["eps"]]
        for attack, style in (("worst", "-"), ("cross_entropy", _DOTTED)):
            shares = np.array([robust["accuracy"], *robust["robust_accuracy"][attack]])
            ax.plot(radii, shares, color=color, linestyle=style, marker=marker, markersize=4.5)
            if attack == "worst":
                error = 2 * np.sqrt(shares * (1 - shares) / robust["count"])
                ax.fill_between(
                    radii, shares - error, shares + error, color=color, alpha=0.13, lw=0
                )
    _line_styles(ax, "worst case (band: 2 s.e.)", "PGD on the cross-entropy alone")


def _line_styles(ax: Axes, solid: str, dotted: str) -> None:
    """A legend of the line styles, under the panel, where it hides no data."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#444444", linestyle="-", label=solid),
        Line2D([], [], color="#444444", linestyle=_DOTTED, label=dotted),
    ]
    ax.legend(
        handles=handles, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2,
        frameon=False,
    )  # fmt: skip


def _legend(figure: Figure, trials: Sequence[Trial]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, linewidth=3, label=trial.title)
        for trial, color, marker in _styled(trials)
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=12
    )
