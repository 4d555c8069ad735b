"""Reports as text tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.norms import norm_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin_ext.measurement.report import MarginReport

__all__ = ["report_table", "text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces; the first one flush left, numbers flush right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        out.append("  ".join(cells).rstrip())
        if number == 0:
            out.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(out)


def report_table(report: MarginReport) -> str:
    """Accuracy, then for each norm and quantity the minimum, average and quantiles."""
    kind = "signed" if report.signed else "unsigned (from the predicted class)"
    head = (
        f"{len(report)} samples, accuracy {report.accuracy:.4f}, mean gap "
        f"{report.gap.astype('float64').mean():.4g}; margins {kind}, classes: {report.classes}"
    )
    if report.exact:
        head += "; exact (linear model)"
    rows = []
    notes = []
    for p, norm in report.norms.items():
        for quantity in ("margin", *norm.bounds):
            total = report.summary(p, quantity)
            above = ""
            upper = norm.kinds.get(quantity) == "upper"
            if norm.nearest is not None and not upper:
                values = norm.margin if quantity == "margin" else norm.bounds[quantity]
                above = f"{norm.share_above_upper(values, report.sides):.1%}"
            rows.append(
                [
                    f"{norm_name(p)} {report.titles.get(quantity, 'first-order margin')}",
                    f"{total.minimum:.4g}",
                    f"{total.average:.5g}",
                    f"{total.average_correct:.5g}",
                    *(f"{total.quantiles[q]:.4g}" for q in (0.05, 0.5, 0.95)),
                    above,
                ]
            )
            if total.infinite:
                why = "no adversarial example found" if upper else "no gradient"
                notes.append(
                    f"{norm_name(p)} {quantity}: {total.infinite} samples left out ({why})"
                )
    header = ["", "min", "average", "avg correct", "5%", "median", "95%", "above upper"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return "\n".join([head, "", text_table(header, rows), *notes])
