"""Whether training for a margin reached what was asked of it.

At the time of 2-step adversarial training or less: a worst case of at least 7-step adversarial
training's at no lower accuracy; or, at an equal worst case, one point more of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.robust_training.methods import METHODS, REFERENCE, TIMED_BY
from benchmarks.robust_training.rows import Row
from benchmarks.robust_training.tables import counted, fraction, with_error

__all__ = ["GOAL", "judge", "most_robust_margin", "named_margin"]

GOAL = (
    "At the time of 2-step adversarial training or less: a worst case of at least 7-step "
    "adversarial training's at no lower clean accuracy, or an equal worst case at one point more "
    "of clean accuracy. (Times within 5 % count as the same. Named is the margin in time that is "
    "most robust on validation images.)"
)
_AT_THE_AIM = "adversarial_7_radius"
_MORE_ACCURATE = 0.01
# The rounds of a timing differ by more than this among themselves.
_SAME_TIME = 1.05


def named_margin(rows: Mapping[str, Row]) -> Row | None:
    """The margin in time that is most robust on validation images: test images choose nothing.

    Where none is in time, of all; None as long as none was run.
    """
    return max(_margins(rows), key=lambda row: (_in_time(row, rows), row.validated), default=None)


def most_robust_margin(rows: Mapping[str, Row]) -> Row | None:
    """The margin with the highest worst case, however long it takes; None: none was run."""
    return max(_margins(rows), key=lambda row: row.mean_robust, default=None)


def _margins(rows: Mapping[str, Row]) -> list[Row]:
    return [row for key, row in rows.items() if METHODS[key].group != "peer"]


def judge(rows: Mapping[str, Row]) -> str:
    """Reached, not reached or not measured, with the figures.

    Against 7-step adversarial training at its chosen radius, and against that at the aim itself
    where it was run. A method that takes longer and is more robust is told too, and that 2 steps of
    adversarial training reach the goal, where no margin is needed for it.
    """
    timed = rows.get(TIMED_BY)
    if REFERENCE not in rows or timed is None or named_margin(rows) is None:
        return "**not measured yet.**"
    told = [_judged(rows, timed, REFERENCE)]
    if _AT_THE_AIM in rows:
        told.append(f"Against 7 steps at the radius itself: {_judged(rows, timed, _AT_THE_AIM)}")
    return " ".join(told)


def _judged(rows: Mapping[str, Row], timed: Row, reference: str) -> str:
    named, seven = named_margin(rows), rows[reference]
    assert named is not None
    told = [f"**{'reached' if _reached(named, rows, reference) else 'not reached'}.**"]
    told.append(_figures(named, seven, timed))
    if _reached(timed, rows, reference):
        told.append("2 steps reach it themselves:")
        told.append(_figures(timed, seven, None))
    for row in _margins(rows):
        if row is not named and _reached(row, rows, reference):
            told.append("Seen on the test images alone, this reaches it:")
            told.append(_figures(row, seven, timed))
    robust = most_robust_margin(rows)
    if robust is not None and not _in_time(robust, rows):
        told.append("At more time: " + _figures(robust, seven, timed))
    return " ".join(told)


def _figures(row: Row, reference: Row, timed: Row | None) -> str:
    return " ".join(
        [
            f"{_capital(METHODS[row.key].title)} ({counted(len(row.seeds), 'seed')}):",
            f"worst case {fraction(row.mean_robust)} against",
            f"{fraction(reference.mean_robust)} of 7 steps",
            f"(on the same seeds and images {with_error(*row.minus(reference))}),",
            f"accuracy {fraction(row.mean_accuracy, 4)} against "
            f"{fraction(reference.mean_accuracy, 4)}",
            f"(on the same seeds {row.more_accurate_than(reference):+.4f})"
            + ("." if timed is None else f", {_time(row, timed)}."),
        ]
    )


def _time(row: Row, timed: Row) -> str:
    share = row.time_over(timed)
    if share is None:
        return "time not measured yet"
    sessions = counted(len(row.sessions_with(timed)), "session")
    return f"time {share:.2f} times that of 2 steps ({sessions})"


def _in_time(row: Row, rows: Mapping[str, Row]) -> bool:
    timed = rows.get(TIMED_BY)
    share = None if timed is None else row.time_over(timed)
    return share is not None and share <= _SAME_TIME


def _reached(row: Row, rows: Mapping[str, Row], reference: str) -> bool:
    seven = rows.get(reference)
    if seven is None or not _in_time(row, rows):
        return False
    difference, error = row.minus(seven)
    more = row.more_accurate_than(seven)
    as_robust = difference >= 0 and more >= 0
    as_accurate = difference >= -error and more >= _MORE_ACCURATE
    return as_robust or as_accurate


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
