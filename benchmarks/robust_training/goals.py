"""Whether training for a margin reached what was asked of it.

At the time of 2-step adversarial training or less: a worst case of at least 7-step adversarial
training's at no lower accuracy; or, at an equal worst case, one point more of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.rows import Row
from benchmarks.robust_training.tables import fraction

__all__ = ["GOAL", "best_margin", "judge"]

GOAL = (
    "At the time of 2-step adversarial training or less: a worst case of at least 7-step "
    "adversarial training's at no lower clean accuracy, or an equal worst case at one point more "
    "of clean accuracy."
)
_TIMED_BY = "adversarial_2"
_MORE_ACCURATE = 0.01


def best_margin(rows: Mapping[str, Row]) -> Row | None:
    """The method with a margin that reaches the goal, or else the most robust one.

    None as long as none was run.
    """
    margins = [row for key, row in rows.items() if METHODS[key].group != "peer"]
    return max(margins, key=lambda row: (_reached(row, rows), row.mean_robust), default=None)


def judge(rows: Mapping[str, Row]) -> str:
    """Reached, not reached or not measured, with the figures."""
    best, timed, reference = best_margin(rows), rows.get(_TIMED_BY), rows.get(REFERENCE)
    if best is None or timed is None or reference is None:
        return "**not measured yet.**"
    difference, error = best.minus(reference)
    if best.time is None or timed.time is None:
        time = "not measured yet"
    else:
        time = f"{best.time:.1f} against {timed.time:.1f} of 2 steps"
    return " ".join(
        [
            f"**{'reached' if _reached(best, rows) else 'not reached'}.**",
            f"{_capital(METHODS[best.key].title)} ({_counted(len(best.seeds), 'seed')}):",
            f"worst case {fraction(best.mean_robust)} against",
            f"{fraction(reference.mean_robust)} of 7 steps",
            f"(paired difference {difference:+.3f} ± {error:.3f}),",
            f"accuracy {fraction(best.mean_accuracy, 4)} against "
            f"{fraction(reference.mean_accuracy, 4)}",
            f"(difference on the same seeds {best.more_accurate_than(reference):+.4f}),",
            f"time {time}.",
        ]
    )


def _reached(row: Row, rows: Mapping[str, Row]) -> bool:
    timed, reference = rows.get(_TIMED_BY), rows.get(REFERENCE)
    if timed is None or reference is None or row.time is None or timed.time is None:
        return False
    difference, error = row.minus(reference)
    more = row.more_accurate_than(reference)
    as_robust = difference >= 0 and more >= 0
    as_accurate = difference >= -error and more >= _MORE_ACCURATE
    return row.time <= timed.time and (as_robust or as_accurate)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
