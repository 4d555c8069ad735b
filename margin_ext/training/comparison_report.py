"""A comparison as one table and as report.json."""

from __future__ import annotations

import dataclasses
import json
import platform
from typing import TYPE_CHECKING, Any

import torch

import margin_ext
from margin_ext.measurement.files import write_atomically
from margin_ext.measurement.report import finite_json
from margin_ext.measurement.table import text_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from margin_ext.training.comparison import Comparison, Outcome

__all__ = ["comparison_dict", "comparison_table", "save_report"]

_MISSING = "-"
_VANISHES = "!"
_MISLEADS = "?"


def comparison_table(comparison: Comparison) -> str:
    """One column a contender, and below it what the marks and words mean."""
    outcomes = comparison.outcomes
    held_out = comparison.evaluation.part
    rows: list[list[str]] = []

    def row(name: str, cell: Callable[[Outcome], str]) -> None:
        rows.append([name, *(cell(outcome) for outcome in outcomes)])

    both = f"train / {held_out}"
    row("epochs", lambda o: f"{o.training.epoch}")
    row(f"accuracy, {both}", lambda o: _both(o, "accuracy"))
    row(f"minimum margin, {both}", lambda o: _both(o, "minimum_margin"))
    row(f"average margin, {both}", lambda o: _both(o, "average_margin"))
    row(f"average attack distance, {held_out}", _distance)
    for index, eps in enumerate(comparison.evaluation.eps):
        row(f"robust at l2 eps {eps:g}, gap / CE", lambda o, i=index: _robust(o, i))  # type: ignore[misc]
    row("CE gradient vanishes on", _vanishing)
    row("seconds per epoch", lambda o: _number(o.training.seconds_per_epoch, 2))
    header = ["", *(outcome.contender.title for outcome in outcomes)]
    return "\n".join([text_table(header, rows), "", *_notes(comparison)])


def _both(outcome: Outcome, quantity: str) -> str:
    train, held_out = outcome.totals("train"), outcome.totals("held_out")
    if train is None or held_out is None:
        return _MISSING
    return f"{_number(train[quantity], 3)} / {_number(held_out[quantity], 3)}"


def _number(value: float, digits: int) -> str:
    return _MISSING if value != value else f"{value:.{digits}f}"  # noqa: PLR0124


def _distance(outcome: Outcome) -> str:
    if outcome.measured is None:
        return _MISSING
    return _number(outcome.measured["held_out"]["attack_distance"]["average"], 3)


def _robust(outcome: Outcome, index: int) -> str:
    if outcome.measured is None:
        return _MISSING
    robust = outcome.measured["robust_accuracy"]
    gap, ce = (robust["robust_accuracy"][name][index] for name in ("gap", "cross_entropy"))
    diagnosis = robust["diagnosis"] or {}
    gap_mark = _MISLEADS if diagnosis.get("gap_masked") else " "
    ce_mark = _VANISHES if diagnosis.get("cross_entropy_masked") else " "
    return f"{gap:.3f}{gap_mark}/ {ce:.3f}{ce_mark}"


def _vanishing(outcome: Outcome) -> str:
    diagnosis = outcome.measured and outcome.measured["robust_accuracy"]["diagnosis"]
    return f"{diagnosis['cross_entropy_underflow']:.1%}" if diagnosis else _MISSING


def _notes(comparison: Comparison) -> list[str]:
    evaluation = comparison.evaluation
    count = len(comparison.held_out[1])
    if evaluation.samples is not None:
        count = min(count, evaluation.samples)
    sizes = f"{len(comparison.train[1])} training images, {count} {evaluation.part} images measured"
    notes = [
        f"{comparison.data.name}: {sizes}.",
        "Margin: signed first-order l2 distance to the nearest class boundary (class rule: all), "
        "black 0, white 1.",
        "It may overstate the way; the attack distance is an upper bound on it (0 where "
        "misclassified).",
        f"Robust: accuracy under {evaluation.attack_steps}-step PGD on the logit gap / on the "
        "cross-entropy (CE). The truth is below both.",
    ]
    marks = [
        (outcome, (outcome.measured["robust_accuracy"]["diagnosis"] or {}))
        for outcome in comparison.outcomes
        if outcome.measured is not None
    ]
    for mark, flag, meaning in (
        (_VANISHES, "cross_entropy_masked", "the CE figure may be too good"),
        (_MISLEADS, "gap_masked", "so may the gap figure"),
    ):
        found = [outcome.contender.title for outcome, diagnosis in marks if diagnosis.get(flag)]
        if found:
            notes.append(f"{mark} Signs of gradient masking ({', '.join(found)}): {meaning}.")
    unfinished = [o for o in comparison.outcomes if o.measured is None]
    if unfinished:
        notes.append(
            f"Not finished: {', '.join(o.contender.title for o in unfinished)} (margins of the "
            "last whole epoch, on fewer images)."
        )
    return notes


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything that is known, as plain values."""
    return {
        "complete": all(outcome.measured is not None for outcome in comparison.outcomes),
        "data": {
            "name": comparison.data.name,
            "train": len(comparison.train[1]),
            "held_out": len(comparison.held_out[1]),
            "held_out_part": comparison.evaluation.part,
        },
        "recipe": dataclasses.asdict(comparison.recipe),
        "evaluation": {**dataclasses.asdict(comparison.evaluation), "class_rule": "all"},
        "environment": {
            "margin_ext": margin_ext.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": comparison.device.type,
            "threads": torch.get_num_threads(),
        },
        "trainings": [_outcome_dict(outcome, comparison.out) for outcome in comparison.outcomes],
    }


def _outcome_dict(outcome: Outcome, out: Path) -> dict[str, Any]:
    measured, training = outcome.measured, outcome.training
    return {
        "key": outcome.contender.key,
        "title": outcome.contender.title,
        **outcome.contender.objective.settings(),
        "initial_weights": training.initial_weights,
        "epochs": training.epoch,
        "seconds_per_epoch": training.seconds_per_epoch,
        "train": outcome.totals("train"),
        "held_out": outcome.totals("held_out"),
        "robust_accuracy": None if measured is None else measured["robust_accuracy"],
        "checkpoint": str(training.checkpoint.relative_to(out)),
        "history": str((outcome.folder / "history.jsonl").relative_to(out)),
    }


def save_report(comparison: Comparison) -> tuple[Path, Path]:
    """Write report.json and table.txt into the comparison's folder."""
    text = json.dumps(finite_json(comparison_dict(comparison)), indent=1)
    table = comparison_table(comparison) + "\n"
    paths = comparison.out / "report.json", comparison.out / "table.txt"
    for path, content in zip(paths, (text, table), strict=True):
        write_atomically(path, lambda file, content=content: file.write(content.encode()))  # type: ignore[misc]
    return paths
