"""Write the tables, the goals and the headline into README.md and the pages of docs.

    python -m benchmarks.robust_training.page

Everything between ``<!-- made from docs/results: NAME -->`` and ``<!-- end -->`` is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.robust_training.cheaper_steps import cheaper_steps_table
from benchmarks.robust_training.goals import GOAL, judge, most_robust_margin, named_margin
from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.over_training import over_training_table
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.rows import Row, rows_of
from benchmarks.robust_training.samples import read_bits
from benchmarks.robust_training.tables import counted, fraction, setting_text, table
from margin_ext.output.atomic_write import write_text

__all__ = ["made_anew"]

RESULTS = environment.ROOT / "docs" / "results"
PAGES = tuple(
    environment.ROOT / page for page in ("docs/results.md", "docs/gradient-modes.md", "README.md")
)
_PLACE = re.compile(
    r"(<!-- made from docs/results: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
# Version 0.1.0's files and names of the methods.
_EARLIER = RESULTS / "version_0.1.0"
_RENAMED = {"first_order": "boundary"}
# A cell tells how many seeds it has where it has fewer.
_SEEDS = 3
# The peers, what the paper proposes, and each kind of margin in its plainest form.
_ALWAYS_TOLD = (
    "plain",
    "adversarial_1",
    "adversarial_1_memory",
    "adversarial_2",
    "adversarial_2_memory",
    "adversarial_3_alternating",
    "adversarial_7_alternating",
    "adversarial_7_radius",
    "adversarial_7",
    "own_length",
    "own_length_attack",
    "additive",
    "secant",
    "first_order",
    "penalty",
    "authors",
    "authors_orthogonality",
)


def made_anew(text: str, folder: Path = RESULTS) -> str:
    """The text with every marked place written from the results.

    Raises:
        ValueError: A place has a name that is not known.
    """

    def place(found: re.Match[str]) -> str:
        return f"{found[1]}\n{_made(found['name'], folder)}\n\n{found[3]}"

    return _PLACE.sub(place, text)


def _made(name: str, folder: Path) -> str:
    if name in PROBLEMS:
        return table(folder / f"{name}.json")
    if name not in _MAKERS:
        raise ValueError(f"there is nothing named {name!r} to be made from the results")
    return _MAKERS[name](folder)


def _results(folder: Path, problem: str) -> dict[str, Any]:
    path = folder / f"{problem}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _goals(folder: Path) -> str:
    lines = [f"> {GOAL}", ""]
    for problem, known in PROBLEMS.items():
        lines.append(f"- {known.title}: {judge(rows_of(_results(folder, problem)))}")
    return "\n".join(lines)


def _headline(folder: Path) -> str:
    """A row a training and a column a problem."""
    found = {name: rows_of(_results(folder, name)) for name in PROBLEMS}
    found = {name: rows for name, rows in found.items() if REFERENCE in rows and named_margin(rows)}
    if not found:
        return "Not run yet."
    told = {row.key for rows in found.values() for row in _told(rows)}
    titles = [PROBLEMS[name].short for name in found]
    lines = ["| | " + " | ".join(titles) + " |", "|" + " --- |" * (len(titles) + 1)]
    for key, method in METHODS.items():
        if key in told:
            cells = [_cell(rows.get(key)) for rows in found.values()]
            lines.append("| " + " | ".join([method.title, *cells]) + " |")
    return "\n".join(lines)


def _told(rows: Mapping[str, Row]) -> list[Row]:
    """What is always told, the margin in time that the goals name, and the most robust one."""
    margins = [row.key for row in (named_margin(rows), most_robust_margin(rows)) if row is not None]
    return [rows[key] for key in dict.fromkeys((*_ALWAYS_TOLD, *margins)) if key in rows]


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    time = "" if row.time is None else f" · {row.time:.1f}"
    seeds = "" if len(row.seeds) >= _SEEDS else f" ({counted(len(row.seeds), 'seed')})"
    return f"**{fraction(row.mean_robust)}** · {fraction(row.mean_accuracy)}{time}{seeds}"


_ATTACKS = {
    "minimum_distance": "minimum distance",
    "nearest": "default attack",
    "decaying_gap": "PGD, gap",
    "decaying_cross_entropy": "PGD, cross-entropy",
    "all before AutoAttack": "all of these",
    "autoattack": "and APGD",
}
_LAST = "and PGD in a shrinking ball: worst case"


def _attacks(folder: Path) -> str:
    """What each attack alone leaves at the aim, of the first seed's networks."""
    head = ["problem", "training", *_ATTACKS.values(), _LAST, "signs of masking"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for problem, known in PROBLEMS.items():
        runs = _results(folder, problem).get("runs", {})
        for key, method in METHODS.items():
            run = runs.get(f"{key} 0")
            if run is None or "left_by" not in run:
                continue
            left = [fraction(run["left_by"][name][-1]) for name in _ATTACKS]
            worst = fraction(float(read_bits(run["samples"]["worst"][-1]).mean()))
            signs = str(len(run["signs_of_masking"]) or "-")
            cells = [known.title, method.title, *left, f"**{worst}**", signs]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def _earlier(folder: Path) -> str:
    """What version 0.1.0's tables said, beside the new figures."""
    lines = [
        "| problem | training | 0.1.0: robust at the radius | now: worst case | now: setting |",
        "| --- | --- | --- | --- | --- |",
    ]
    for problem, known in PROBLEMS.items():
        old = _results(_EARLIER, problem)
        rows = rows_of(_results(folder, problem))
        for key, method in METHODS.items():
            said = _said(old, _RENAMED.get(key, key))
            if said is None:
                continue
            now = rows.get(key)
            setting = "" if now is None else setting_text(now.setting)
            figure = "not run yet" if now is None else fraction(now.mean_robust)
            lines.append(
                f"| {known.title} | {method.title} | {fraction(said)} | {figure} | {setting} |"
            )
    return "\n".join(lines)


def _said(results: Mapping[str, Any], key: str) -> float | None:
    """Version 0.1.0's mean robust accuracy at the aim."""
    found = [
        run["l2"]["robust_accuracy"]["worst"][-1]
        for name, run in results.get("runs", {}).items()
        if name.rsplit(" ", 1)[0] == key
    ]
    return statistics.fmean(found) if found else None


_MAKERS: dict[str, Callable[[Path], str]] = {
    "goals": _goals,
    "headline": _headline,
    "attacks": _attacks,
    "earlier": _earlier,
    "over training": lambda folder: over_training_table(folder / "margins_over_training.json"),
    "cheaper steps": lambda folder: cheaper_steps_table(folder / "cheaper_steps.json"),
}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    for page in PAGES:
        write_text(page, made_anew(page.read_text()))
        print(page)


if __name__ == "__main__":
    main()
