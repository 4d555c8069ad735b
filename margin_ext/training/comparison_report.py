"""Outcomes as one table and as report.json."""

from __future__ import annotations

import dataclasses
import json
import platform
from typing import TYPE_CHECKING, Any, Protocol

import torch

import margin_ext
from margin_ext.norms import norm_name
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.finite_json import finite_json
from margin_ext.output.text_table import text_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from margin_ext.data.image_data import ImageData
    from margin_ext.training.comparison import Comparison
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.outcome import Outcome

__all__ = [
    "Outcomes",
    "comparison_dict",
    "comparison_table",
    "environment",
    "outcome_dict",
    "save_report",
    "write_report",
]

_MISSING = "-"
_VANISHES = "!"
_MISLEADS = "?"


class Outcomes(Protocol):
    """What tables and figures are made of: a comparison, or a single run."""

    @property
    def out(self) -> Path:
        """The folder."""

    @property
    def data(self) -> ImageData:
        """What was trained on."""

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """Its training images and labels."""

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Those that are reported on."""

    @property
    def evaluation(self) -> Evaluation:
        """How all were measured."""

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The trainings."""


def comparison_table(comparison: Outcomes) -> str:
    """One column a contender, and below it what the marks and words mean."""
    outcomes = comparison.outcomes
    held_out = comparison.evaluation.part
    norm = norm_name(comparison.evaluation.p)
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
        row(f"robust at {norm} eps {eps:g}, gap / CE", lambda o, i=index: _robust(o, i))  # type: ignore[misc]
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


def _notes(comparison: Outcomes) -> list[str]:
    evaluation = comparison.evaluation
    low, high = evaluation.data_range
    unit = f"black {low:g}, white {high:g}" if evaluation.input_std is None else "in pixel units"
    count = len(comparison.held_out[1])
    if evaluation.samples is not None:
        count = min(count, evaluation.samples)
    sizes = f"{len(comparison.train[1])} training images, {count} {evaluation.part} images measured"
    restarts = f", {evaluation.restarts} starts" if evaluation.restarts > 1 else ""
    notes = [
        f"{comparison.data.name}: {sizes}.",
        f"Margin: signed first-order {norm_name(evaluation.p)} distance to the nearest class "
        f"boundary (class rule: all), {unit}.",
        "It may overstate the way; the attack distance is an upper bound on it (0 where "
        "misclassified).",
        f"Robust: accuracy under {evaluation.attack_steps}-step PGD on the logit gap / on the "
        f"cross-entropy (CE){restarts}. The truth is below both.",
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
    for words, done in (("Not finished", False), ("Not measured", True)):
        found = [
            o.contender.title
            for o in comparison.outcomes
            if o.measured is None and (o.training.epoch == o.training.recipe.epochs) is done
        ]
        if found:
            notes.append(
                f"{words}: {', '.join(found)} (margins of the last whole epoch, on fewer images)."
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
        "environment": environment(comparison.device),
        "trainings": [outcome_dict(outcome, comparison.out) for outcome in comparison.outcomes],
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What figures may depend on beside the settings."""
    return {
        "margin_ext": margin_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def outcome_dict(outcome: Outcome, out: Path) -> dict[str, Any]:
    """One training as plain values, with the places of its files relative to ``out``."""
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
    paths = comparison.out / "report.json", comparison.out / "table.txt"
    write_report(comparison_dict(comparison), comparison_table(comparison), *paths)
    return paths


def write_report(values: dict[str, Any], table: str, json_path: Path, table_path: Path) -> None:
    """Write both forms of a report atomically."""
    text = json.dumps(finite_json(values), indent=1)
    for path, content in ((json_path, text), (table_path, table + "\n")):
        write_atomically(path, lambda file, content=content: file.write(content.encode()))  # type: ignore[misc]
