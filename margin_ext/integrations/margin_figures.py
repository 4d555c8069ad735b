"""The few numbers of a measurement that training frameworks log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from margin_ext.measurement import measure, robust_accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_ext.models.evaluation_mode import Model

__all__ = ["MarginFigures", "margin_figures"]


class MarginFigures(NamedTuple):
    """Numbers by name.

    Attributes:
        samples: Samples that were measured.
        values: "average", "minimum", "accuracy" and "robust_accuracy_<eps>" for each radius.
    """

    samples: int
    values: Mapping[str, float]


def margin_figures(
    model: Model,
    data: Any,
    *,
    eps: Sequence[float] = (),
    measure_options: Mapping[str, Any] | None = None,
    attack_options: Mapping[str, Any] | None = None,
) -> MarginFigures:
    """Measure one norm, and robust accuracy where there are radii.

    Args:
        model: As in :func:`margin_ext.measure`.
        data: As there.
        eps: Radii of robust accuracy.
        measure_options: Further arguments of :func:`margin_ext.measure`.
        attack_options: Further arguments of :func:`margin_ext.robust_accuracy`.
    """
    report = measure(model, data, **{"progress": False, **(measure_options or {})})
    total = report.summary()
    values = {
        "average": float(total.average),
        "minimum": float(total.minimum),
        "accuracy": float(report.accuracy),
    }
    if eps:
        options = {"progress": False, "diagnose_masking": False, **(attack_options or {})}
        robust = robust_accuracy(model, data, eps, **options)
        named = zip(robust.eps, robust.curve("worst"), strict=True)
        values |= {f"robust_accuracy_{radius:g}": share for radius, share in named}
    return MarginFigures(len(report.target), values)
