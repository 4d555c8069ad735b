"""The results of one problem as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.robust_training.methods import METHODS, REFERENCE, TIMED_BY, Setting
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.rows import Row, rows_of

__all__ = ["counted", "fraction", "setting_text", "table", "with_error"]

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
    "over 2 steps (sessions)",
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
        lines += [_line(_cells(row, rows)) for row in rows.values()]
        lines.append("")
    tried = results.get("tuning", {})
    missing = [key for key in METHODS if key not in rows]
    validated = [
        f"{METHODS[key].title} ({_tried(tried[key])})" for key in missing if tried.get(key)
    ]
    if validated:
        lines += [
            f"Seen on validation images alone (accuracy / robust): {'; '.join(validated)}.",
            "",
        ]
    never = [METHODS[key].title for key in missing if not tried.get(key)]
    if never:
        lines.append(f"Not run yet: {'; '.join(never)}.")
    return "\n".join(lines).rstrip()


def _tried(settings: list[dict[str, Any]]) -> str:
    """Accuracy and robustness of each setting that was trained."""
    return ", ".join(f"{setting_text(one['setting'])}: {_outcome(one)}" for one in settings)


def _outcome(tried: Mapping[str, Any]) -> str:
    if "diverged" in tried:
        return "diverged"
    return f"{fraction(tried['accuracy'])} / {fraction(tried['robust'])}"


def setting_text(setting: Setting) -> str:
    """One line.

    >>> setting_text({"tau": 40.0, "beta": 0.01})
    'tau 40, beta 0.01'
    """
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def _cells(row: Row, rows: Mapping[str, Row]) -> list[str]:
    reference = rows.get(REFERENCE)
    if reference is None or row.key == REFERENCE:
        difference = "-"
    else:
        difference = with_error(*row.minus(reference))
    time = "-" if row.time is None else f"{row.time:.1f}"
    return [
        METHODS[row.key].title,
        (setting_text(row.setting) or "-") + (f" ({row.end_of_grid})" if row.end_of_grid else ""),
        str(len(row.seeds)),
        _ranged(row.accuracy, digits=4),
        _ranged(row.robust[0]),
        f"**{fraction(row.mean_robust)}**" + _range(row.robust[1]),
        difference,
        f"{row.average_distance:.2f} / {row.median_distance:.2f} ({row.not_found})",
        f"{row.tangent_over_distance:.2f}",
        time,
        _over_two_steps(row, rows.get(TIMED_BY)),
    ]


def _over_two_steps(row: Row, timed: Row | None) -> str:
    """The ratio of times that the goals look at, with the number of sessions it is a median of."""
    share = None if timed is None or row is timed else row.time_over(timed)
    if timed is None or share is None:
        return "-"
    return f"{share:.2f} ({len(row.sessions_with(timed))})"


def fraction(value: float, digits: int = 3) -> str:
    """Without the 0 before the point.

    >>> fraction(0.5), fraction(1.0)
    ('.500', '1.000')
    """
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.{digits}f}"


def counted(count: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


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
