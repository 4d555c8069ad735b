"""The report of one trial or several: a table, report.json, and a figure."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import margin_ext
from margin_ext.norms import norm_name
from margin_ext.output.atomic_write import write_atomically, write_text
from margin_ext.output.finite_json import finite_json
from margin_ext.output.text_table import text_table
from margin_ext.training.trial import FIGURE, REPORT, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from margin_ext.training.trial import Trial

__all__ = ["TrialsReport"]

_MISSING = "-"
_VANISHES = "!"
_MISLEADS = "?"


class TrialsReport:
    """What came of trials on the same data, whether or not they are complete.

    Attributes:
        trials: In the order of the table's columns; all with the same data and evaluation.
        folder: Where the report is saved.

    >>> print(TrialsReport([trial], folder).table())  # doctest: +SKIP
                                        plain cross-entropy
    -------------------------------------------------------
    epochs                                               30
    accuracy, train / test                    1.000 / 0.976
    """

    def __init__(self, trials: Sequence[Trial], folder: str | Path) -> None:
        self.trials = list(trials)
        self.folder = Path(folder)
        self.data = self.trials[0].data
        self.evaluation = self.trials[0].evaluation

    def save(self) -> list[Path]:
        """Write report.json and report.txt, each of them whole.

        Raises:
            OSError: A file cannot be written.
        """
        paths = [self.folder / REPORT, self.folder / TABLE]
        write_text(paths[0], json.dumps(finite_json(self.to_dict()), indent=1))
        write_text(paths[1], self.table() + "\n")
        return paths

    def save_figure(self) -> Path:
        """Draw figure.png.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        path = self.folder / FIGURE
        figure = self.figure()
        write_atomically(path, lambda file: figure.savefig(file, format="png"))
        return path

    def figure(self) -> Figure:
        """Margins over the epochs, their histograms, and robust accuracy.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from margin_ext.training.trials_figure import trials_figure

        return trials_figure(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Everything that is known, as plain values.

        A single trial that was made from settings stands at the top, with its settings.
        """
        first = self.trials[0]
        device = first.train[0].device
        common = {
            "complete": all(trial.complete for trial in self.trials),
            "data": {
                "name": self.data.name,
                "train": len(first.train[1]),
                "held_out": len(first.held_out[1]),
                "held_out_part": self.evaluation.part,
            },
            "environment": {
                "margin_ext": margin_ext.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "device": device.type,
                "threads": torch.get_num_threads(),
                "processes": first.ranks.size,
            },
        }
        if len(self.trials) == 1 and first.run_settings is not None:
            losses = first.loop.losses
            return {
                **common,
                "settings": first.run_settings,
                "accuracy": first.accuracy(),
                "loss": losses[-1] if losses else None,
                **first.to_dict(self.folder),
            }
        return {
            **common,
            "recipe": dataclasses.asdict(first.loop.recipe),
            "evaluation": {**dataclasses.asdict(self.evaluation), "class_rule": "all"},
            "trainings": [trial.to_dict(self.folder) for trial in self.trials],
        }

    def table(self) -> str:
        """One column a trial, and below the table what the marks and words mean."""
        held_out = self.evaluation.part
        norm = norm_name(self.evaluation.measure_p)
        rows: list[list[str]] = []

        def row(name: str, cell: Callable[[Trial], str]) -> None:
            rows.append([name, *(cell(trial) for trial in self.trials)])

        both = f"train / {held_out}"
        row("epochs", lambda t: f"{t.loop.epoch}")
        row(f"accuracy, {both}", lambda t: _both(t, "accuracy"))
        row(f"minimum margin, {both}", lambda t: _both(t, "minimum_margin"))
        row(f"average margin, {both}", lambda t: _both(t, "average_margin"))
        row(f"average attack distance, {held_out}", _distance)
        for index, eps in enumerate(self.evaluation.eps_attack):
            row(f"robust at {norm} eps {eps:g}", lambda t, i=index: _robust(t, "worst", i))  # type: ignore[misc]
            row("  PGD on gap / on CE alone", lambda t, i=index: _pgd(t, i))  # type: ignore[misc]
        row("CE gradient vanishes on", _vanishing)
        row("seconds per epoch", lambda t: _number(t.loop.seconds_per_epoch, 2))
        header = ["", *(trial.title for trial in self.trials)]
        return "\n".join([text_table(header, rows), "", *self._notes()])

    def _notes(self) -> list[str]:
        evaluation, first = self.evaluation, self.trials[0]
        low, high = evaluation.data_range
        unit = f"black {low:g}, white {high:g}"
        if evaluation.input_std is not None:
            unit = "in pixel units"
        count = len(first.held_out[1])
        if evaluation.measure_limit is not None:
            count = min(count, evaluation.measure_limit)
        starts = evaluation.attack_restarts
        restarts = f", {starts} starts" if starts > 1 else ""
        notes = [
            f"{self.data.name}: {len(first.train[1])} training images, {count} {evaluation.part} "
            "images measured.",
            f"Margin: signed first-order {norm_name(evaluation.measure_p)} distance to the nearest "
            f"class boundary (class rule: all), {unit}.",
            "It may overstate the distance; the attack distance is an upper bound on it (0 where "
            "misclassified; images without an adversarial example are not in the average).",
            "Robust: accuracy in the worst case over a search for the nearest adversarial example "
            f"and {evaluation.attack_steps}-step PGD on the logit gap and the cross-entropy (CE)"
            f"{restarts}. The truth is at most that.",
        ]
        for mark, flag, meaning in (
            (_VANISHES, "cross_entropy_masked", "the CE figure may be too good"),
            (_MISLEADS, "gap_masked", "so may the gap figure"),
        ):
            found = [trial.title for trial in self.trials if _diagnosis(trial).get(flag)]
            if found:
                notes.append(f"{mark} Signs of gradient masking ({', '.join(found)}): {meaning}.")
        for words, finished in (("Not finished", False), ("Not measured", True)):
            found = [
                trial.title
                for trial in self.trials
                if trial.measured is None and trial.loop.finished is finished
            ]
            if found:
                notes.append(
                    f"{words}: {', '.join(found)} (margins of the last whole epoch, on fewer "
                    "images)."
                )
        for trial in self.trials:
            accuracy = trial.accuracy() if trial.run_settings is not None else None
            if accuracy is not None:
                held_out = f"{len(trial.held_out[1])} {evaluation.part} images"
                notes.append(f"Accuracy on all {held_out}: {accuracy:.4f}.")
        return notes


def _both(trial: Trial, quantity: str) -> str:
    train, held_out = trial.totals("train"), trial.totals("held_out")
    if train is None or held_out is None:
        return _MISSING
    return f"{_number(train[quantity], 3)} / {_number(held_out[quantity], 3)}"


def _number(value: float, digits: int) -> str:
    return _MISSING if value != value else f"{value:.{digits}f}"  # noqa: PLR0124


def _distance(trial: Trial) -> str:
    if trial.measured is None:
        return _MISSING
    found = trial.measured["held_out"]["attack_distance"]
    missing = found["not_found"]
    return _number(found["average"], 3) + (f" ({missing} not found)" if missing else "")


def _diagnosis(trial: Trial) -> dict[str, Any]:
    found = trial.measured and trial.measured["robust_accuracy"]["diagnosis"]
    return found or {}


def _robust(trial: Trial, attack: str, index: int) -> str:
    if trial.measured is None:
        return _MISSING
    return f"{trial.measured['robust_accuracy']['robust_accuracy'][attack][index]:.3f}"


def _pgd(trial: Trial, index: int) -> str:
    if trial.measured is None:
        return _MISSING
    gap, ce = (_robust(trial, name, index) for name in ("gap", "cross_entropy"))
    gap_mark = _MISLEADS if _diagnosis(trial).get("gap_masked") else " "
    ce_mark = _VANISHES if _diagnosis(trial).get("cross_entropy_masked") else " "
    return f"{gap}{gap_mark}/ {ce}{ce_mark}"


def _vanishing(trial: Trial) -> str:
    diagnosis = _diagnosis(trial)
    return f"{diagnosis['cross_entropy_underflow']:.1%}" if diagnosis else _MISSING
