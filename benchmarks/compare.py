"""Compare two result files and flag what became slower.

    python -m benchmarks.compare OLD.json NEW.json [--threshold 1.1]

Compared are ratios to the yardstick of the same run (a clone of the same bytes, a plain training
step), so that a machine that was slower altogether flags nothing. A case counts as slower where its
median ratio grew by more than the threshold and the quartiles of old and new do not overlap.

Exit status: 0 nothing slower, 1 something slower, 2 nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results


@dataclass(frozen=True)
class Change:
    """One contender of one case, in both files.

    Attributes:
        case: Name of the case.
        contender: Name of the contender.
        old: Its ratio to the yardstick: median, low, high.
        new: The same, in the new file.
    """

    case: str
    contender: str
    old: dict[str, float]
    new: dict[str, float]

    @property
    def growth(self) -> float:
        return self.new["median"] / self.old["median"]

    def slower(self, threshold: float) -> bool:
        return self.growth > threshold and self.new["low"] > self.old["high"]

    def faster(self, threshold: float) -> bool:
        return self.growth < 1 / threshold and self.new["high"] < self.old["low"]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every case and contender that both files measured, the same way."""
    before = {case["name"]: case for case in old["cases"]}
    found = []
    for case in new["cases"]:
        earlier = before.get(case["name"])
        if earlier is None or "over_yardstick" not in case:
            continue
        for contender in case["subject"]:
            a = earlier["over_yardstick"].get(contender)
            b = case["over_yardstick"].get(contender)
            if a and b and a["method"] == b["method"]:
                found.append(Change(case["name"], contender, a, b))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=1.1, help="slower by more than this")
    given = parser.parse_args(argv)
    try:
        old, new = results.load(given.old), results.load(given.new)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found = changes(old, new)
    if not found:
        print("nothing to compare: the files share no case", file=sys.stderr)
        return 2
    slower = [change for change in found if change.slower(given.threshold)]
    faster = [change for change in found if change.faster(given.threshold)]
    for word, group in (("slower", slower), ("faster", faster)):
        for change in sorted(group, key=lambda change: -change.growth):
            print(
                f"{word} x {change.growth:.2f}: {change.case}, {change.contender} "
                f"({change.old['median']:.3g} to {change.new['median']:.3g} x yardstick)"
            )
    print(f"{len(found)} compared, {len(slower)} slower, {len(faster)} faster")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
