"""A report as a table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.norms import norm_name
from margin_ext.output.text_table import text_table

if TYPE_CHECKING:
    from margin_ext.measurement.report import MarginReport, NormMargins

__all__ = ["report_table"]

_HEADER = ("", "min", "average", "avg correct", "5%", "median", "95%", "not found", "above upper")


def report_table(report: MarginReport) -> str:
    """Accuracy, then for each norm and quantity the minimum, average and quantiles."""
    wrong = int((~report.correct).sum())
    kind = "signed" if report.signed else "unsigned (from the predicted class)"
    head = (
        f"{len(report)} samples, accuracy {report.accuracy:.4f} ({wrong} misclassified), mean gap "
        f"{report.average_gap:.4g}; margins {kind}, classes: {report.classes}"
    )
    if report.exact:
        head += "; exact (linear model)"
    rows = [
        _row(report, norm, quantity)
        for norm in report.norms.values()
        for quantity in norm.quantities
    ]
    kept = [i for i in range(len(_HEADER)) if i == 0 or any(row[i] for row in rows)]
    table = text_table([_HEADER[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return "\n".join([head, "", table, *_notes(report, wrong)])


def _row(report: MarginReport, norm: NormMargins, quantity: str) -> list[str]:
    total = report.summary(norm.p, quantity)
    above = ""
    if norm.smallest_upper is not None and norm.kinds.get(quantity) != "upper":
        above = f"{norm.share_above_upper(norm[quantity], report.sides):.1%}"
    return [
        f"{norm_name(norm.p)} {report.title(quantity)}",
        f"{total.minimum:.4g}",
        f"{total.average:.5g}",
        f"{total.average_correct:.5g}",
        *(f"{total.quantiles[q]:.4g}" for q in (0.05, 0.5, 0.95)),
        str(total.infinite) if total.infinite else "",
        above,
    ]


def _notes(report: MarginReport, wrong: int) -> list[str]:
    notes = []
    for norm in report.norms.values():
        for quantity in norm.quantities:
            left_out = report.summary(norm.p, quantity).infinite
            if left_out:
                upper = norm.kinds.get(quantity) == "upper"
                why = "no adversarial example found" if upper else "no gradient"
                notes.append(
                    f"{norm_name(norm.p)} {quantity}: {left_out} samples left out of the averages "
                    f"({why}); quantiles count them as infinite"
                )
    if wrong and report.signed and any(norm.bounds for norm in report.norms.values()):
        notes.append(f"the {wrong} misclassified samples have distance 0")
    return notes
