"""The figure of docs/reproduction.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.output.figure_style import COLORS, new_axes, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["reproduction_figure"]

_CNNS = ("plain", "regularized")
_MARGINS = {
    "first-order,\n10,000 points": "{}/average_margin",
    "attack distance,\n500 points": "{}/attack_distance_with_targets",
    "sampled estimate,\n500 points": "{}/sampled_estimate",
}
_ROBUST = {
    "cross-entropy,\nnorm floor 1e-6": "{}/protocol_cross_entropy_eps_2",
    "cross-entropy,\nno floor": "{}/robust_cross_entropy_eps_2",
    "logit gap": "{}/robust_gap_eps_2",
}


def reproduction_figure(values: Mapping[str, float]) -> Figure:
    """What the authors' two CNNs look like by each way of measuring; missing values are left out.

    Args:
        values: As `reproduce` returns.
    """
    figure, (left, right) = new_axes(2)
    _bars(left, values, _MARGINS)
    plain(left, "", "average l2 margin")
    left.set_title("Average margin", fontsize=10)
    _bars(right, values, _ROBUST)
    right.set_ylim(0, 1.05)
    plain(right, "", "accuracy under attack")
    right.set_title("Accuracy under PGD by the loss attacked, l2, eps = 2", fontsize=10)
    left.set_ylim(0, 1.2 * left.get_ylim()[1])
    left.legend(frameon=False, fontsize=8)
    return figure


def _bars(ax: Axes, values: Mapping[str, float], quantities: Mapping[str, str]) -> None:
    width = 0.38
    for number, (network, color) in enumerate(zip(_CNNS, COLORS, strict=False)):
        found = [
            (place, values[key.format(network)])
            for place, key in enumerate(quantities.values())
            if key.format(network) in values
        ]
        bars = ax.bar(
            [place + (number - 0.5) * width for place, _ in found],
            [value for _, value in found],
            width,
            color=color,
            hatch="//" if number else None,
            edgecolor="white",
            label=f"{network} CNN",
        )
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
    ax.set_xticks(range(len(quantities)), list(quantities), fontsize=8)
