"""The one way from results to their figures, so that results do not import what draws them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(name: str, *arguments: Any) -> Figure:
    """Call a function of `margin_ext.measurement.figures`, loaded when a figure is wanted."""
    figures = importlib.import_module("margin_ext.measurement.figures")
    figure: Figure = getattr(figures, name)(*arguments)
    return figure
