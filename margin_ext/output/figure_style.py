"""How figures look. Matplotlib is an extra, imported only when a figure is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "GREY", "axes_or_new", "new_axes", "plain", "write_figure"]

# Distinguishable with the common colour blindnesses (Okabe and Ito), first come first served.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"


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


def write_figure(figure: Figure, path: Path) -> None:
    """Save a figure whole or not at all, in the form that the name's end says."""
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind))
