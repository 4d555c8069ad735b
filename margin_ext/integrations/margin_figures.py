"""The few numbers of a measurement that training frameworks log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from margin_ext.measurement import measure, robust_accuracy
from margin_ext.threat import check_radius

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_ext.models.evaluation_mode import Model

__all__ = ["FigureOptions", "MarginFigures", "margin_figures"]


class MarginFigures(NamedTuple):
    """Numbers by name.

    Attributes:
        samples: Samples that were measured.
        values: "average", "minimum", "accuracy" and "robust_accuracy_<eps>" for each radius.

    Example:
        >>> MarginFigures(samples=2, values={"average": 0.5}).values["average"]
        0.5
    """

    samples: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class FigureOptions:
    """How the figures are measured.

    Attributes:
        eps: Radii of robust accuracy; empty: it is not measured.
        measure: Further arguments of :func:`margin_ext.measure`.
        attack: Further arguments of :func:`margin_ext.robust_accuracy`.

    Raises:
        ValueError: A radius is negative or infinite.

    Example:
        >>> FigureOptions(eps=(0.5,), measure={"p": "inf"}).eps
        (0.5,)
    """

    eps: Sequence[float] = ()
    measure: Mapping[str, Any] | None = None
    attack: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for radius in self.eps:
            check_radius(radius)


def margin_figures(model: Model, data: Any, options: FigureOptions, **common: Any) -> MarginFigures:
    """Measure one norm, and robust accuracy where there are radii.

    Args:
        model: As in :func:`margin_ext.measure`.
        data: As there.
        options: How they are measured.
        **common: Arguments of both measurements where the options name no other.

    Example:
        >>> data = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> found = margin_figures(torch.nn.Linear(2, 2), data, FigureOptions())
        >>> found.samples, sorted(found.values)
        (1, ['accuracy', 'average', 'minimum'])
    """
    quiet = {"progress": False, **common}
    report = measure(model, data, **{**quiet, **(options.measure or {})})
    total = report.summary()
    values = {
        "average": float(total.average),
        "minimum": float(total.minimum),
        "accuracy": float(report.accuracy),
    }
    if options.eps:
        settings = {"diagnose_masking": False, **quiet, **(options.attack or {})}
        robust = robust_accuracy(model, data, options.eps, **settings)
        named = zip(robust.eps, robust.curve("worst"), strict=True)
        values |= {f"robust_accuracy_{radius:g}": fraction for radius, fraction in named}
    return MarginFigures(len(report.target), values)
