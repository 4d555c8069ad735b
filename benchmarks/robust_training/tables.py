"""The results of one problem as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.rows import Row, rows_of

__all__ = ["fraction", "table", "with_error"]

_HEADER = (
    "training",
    "setting",
    "seeds",
    "accuracy",
    "robust at {half:g}",
    "**robust at {aim:g}**",
    "minus 7 steps",
    "average / median distance (not found)",
    "tangent over distance",
    "time",
)


def table(path: Path) -> str:
    """One row a method; methods that were not run are named."""
    if not path.exists():
        title = PROBLEMS[path.stem].title if path.stem in PROBLEMS else path.stem
        return f"**{title}**\n\nNot run yet, with any method."
    results = json.loads(path.read_text())
    rows = rows_of(results)
    lines = [f"**{results['problem']['title']}**", ""]
    if rows:
        half, aim = results["problem"]["eps"]
        header = [cell.format(half=half, aim=aim) for cell in _HEADER]
        lines += [_line(header), _line(["---"] * len(header))]
        lines += [_line(_cells(row, rows.get(REFERENCE))) for row in rows.values()]
        lines.append("")
    missing = [method.title for key, method in METHODS.items() if key not in rows]
    if missing:
        lines.append(f"Not run yet: {'; '.join(missing)}.")
    return "\n".join(lines).rstrip()


def _cells(row: Row, reference: Row | None) -> list[str]:
    setting = ", ".join(f"{name} {value:g}" for name, value in row.setting.items())
    if reference is None or row.key == REFERENCE:
        difference = "-"
    else:
        difference = with_error(*row.minus(reference))
    time = "-" if row.time is None else f"{row.time:.1f}"
    return [
        METHODS[row.key].title,
        setting or "-",
        str(len(row.seeds)),
        _ranged(row.accuracy, digits=4),
        _ranged(row.robust[0]),
        f"**{fraction(row.mean_robust)}**" + _range(row.robust[1]),
        difference,
        f"{row.average_distance:.2f} / {row.median_distance:.2f} ({row.not_found})",
        f"{row.tangent_over_distance:.2f}",
        time,
    ]


def fraction(value: float, digits: int = 3) -> str:
    """Without the 0 before the point.

    >>> fraction(0.5), fraction(1.0)
    ('.500', '1.000')
    """
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.{digits}f}"


def with_error(difference: float, error: float) -> str:
    """A difference with its standard error.

    >>> with_error(-0.02, 0.009)
    '-.020 ± .009'
    """
    return f"{_signed(difference)} ± {fraction(error)}"


def _signed(value: float) -> str:
    return ("-" if round(value, 3) < 0 else "+") + fraction(abs(value))


def _ranged(values: list[float], digits: int = 3) -> str:
    mean = sum(values) / len(values)
    return fraction(mean, digits) + _range(values, digits)


def _range(values: list[float], digits: int = 3) -> str:
    """The range over seeds."""
    if len(values) == 1:
        return ""
    return f" ({fraction(min(values), digits)} to {fraction(max(values), digits)})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
