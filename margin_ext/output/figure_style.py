"""How figures look. Matplotlib is an extra, imported only when a figure is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "GREY",
    "LINES",
    "MARKERS",
    "axes_or_new",
    "clipped_histogram",
    "legend_below",
    "new_axes",
    "plain",
    "write_figure",
]

# Distinguishable with the common colour blindnesses (Okabe and Ito), first come first served.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"
# So that a figure printed in black and white still tells the series apart.
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.5)), (0, (8, 2)), (0, (3, 1)))


def new_axes(columns: int = 1, width: float = 5.5, height: float = 3.8) -> tuple[Figure, list[Any]]:
    """A figure with axes side by side; pyplot's state is not touched.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'margin_ext[plot]'") from error
    figure = Figure(figsize=(width * columns, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def axes_or_new(ax: Axes | None) -> tuple[Figure, Axes]:
    """The axes with their figure; new ones where there are none."""
    if ax is None:
        figure, (new,) = new_axes()
        return figure, new
    owner = ax.get_figure(root=True)
    if owner is None:
        raise ValueError("the axes belong to no figure")
    return owner, ax


def plain(ax: Axes, x: str, y: str) -> None:
    """Label axes; a light grid and no frame."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def clipped_histogram(
    ax: Axes, series: Sequence[NDArray[Any]], x: str, y: str, *, share: float, bins: int
) -> None:
    """Histograms of several series in the same bins, each with a marker at its average.

    The outermost values, a share of them at each end, would squeeze the rest into a corner: they
    count in the first and the last bin, and the label of the axis says how many they are.

    Args:
        ax: Where to draw.
        series: [N] each; what is not finite is left out of the picture and of the average.
        x: Label of the values; the unit included.
        y: What is counted.
        share: Fraction of all values together that lies in the outermost bins, at each end.
        bins: Number of bins.
    """
    finite = [values[np.isfinite(values)] for values in series]
    pooled = np.concatenate(finite)
    if not pooled.size:
        plain(ax, x, y)
        return
    low, high = np.quantile(pooled, [share, 1 - share])
    edges = np.linspace(low, high, bins + 1).tolist()
    for index, values in enumerate(finite):
        color, line = COLORS[index % len(COLORS)], LINES[index % len(LINES)]
        marker = MARKERS[index % len(MARKERS)]
        clipped = np.clip(values, low, high)
        ax.hist(clipped, bins=edges, color=color, alpha=0.13)
        ax.hist(clipped, bins=edges, histtype="step", color=color, linestyle=line, linewidth=1.6)
        if values.size:
            ax.plot(
                np.clip(values.mean(), low, high), 1.03, marker=marker, color=color, markersize=7,
                transform=ax.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
    ax.axvline(0, color=GREY, linewidth=0.8)
    below, above = int((pooled < low).sum()), int((pooled > high).sum())
    notes = [x, "markers above: averages"]
    if below or above:
        notes.append(
            f"outermost bins: also {below} below, down to {pooled.min():.2g}, "
            f"and {above} above, up to {pooled.max():.2g}"
        )
    plain(ax, "\n".join(notes), y)


def legend_below(ax: Axes) -> None:
    """The axes' legend under their label, where it hides no data."""
    below = -0.2 - 0.07 * ax.get_xlabel().count("\n")
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, below))


def write_figure(figure: Figure, path: Path) -> None:
    """Save a figure whole or not at all, in the form that the name's end says."""
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind))
