"""A report as a table of text."""

from __future__ import annotations

import math
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
        share = norm.share_above_upper(norm[quantity], report.sides)
        above = "-" if math.isnan(share) else f"{share:.1%}"  # no correct sample has a bound
    return [
        f"{norm_name(norm.p)} {report.title(quantity)}",
        f"{total.minimum:.4g}",
        f"{total.average:.5g}",
        f"{total.average_correct:.5g}",
        *(f"{total.quantiles[q]:.4g}" for q in (0.05, 0.5, 0.95)),
        str(total.infinite) if total.infinite else "",
        above,
    ]


def _search_notes(report: MarginReport) -> list[str]:
    """What looking at all classes took, and what fewer classes would have missed."""
    if report.classes != "all":
        return []
    notes = []
    searched = report.directions > 0
    if searched.any():
        certain = "" if searched.all() else f" of {int(searched.sum())} samples"
        text = (
            f"margins{certain} are those of all classes with probability "
            f"1 - {report.settings['search']['failure']:g} or more for each sample"
        )
        if report.by_differences.any():
            text += ", as far as the estimated error of finite differences covers the true one"
        taken = report.gradients[searched]
        notes.append(
            f"{text}: {int(report.directions.max())} random directions and {taken.mean():.1f} "
            f"classes' gradients a sample ({int(taken.max())} at most)"
        )
    for norm in report.norms.values():
        shares = [(k, norm.share_beyond(k)) for k in (1, 3, 10)]
        if shares[0][1] > 0:
            text = ", ".join(f"{share:.1%} with the top {k}" for k, share in shares)
            notes.append(
                f"{norm_name(norm.p)}: fewer classes would give too large a margin on "
                f"{text.replace('with the top 1,', 'with the runner-up,')}"
            )
    return notes


def _notes(report: MarginReport, wrong: int) -> list[str]:
    notes = _search_notes(report)
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
