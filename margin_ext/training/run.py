"""One training in a folder of its own: settings, history, checkpoint, report and figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from margin_ext.data.augmentation import Augmentation
from margin_ext.data.image_data import data_digest
from margin_ext.gradient_modes import Auto, FiniteDifference, Secant
from margin_ext.loss import AverageMarginLoss
from margin_ext.measurement import MarginMonitor
from margin_ext.output.atomic_write import write_atomically
from margin_ext.training.checkpoint import OtherSettingsError
from margin_ext.training.comparison_figure import save_figure
from margin_ext.training.comparison_report import (
    comparison_table,
    environment,
    outcome_dict,
    write_report,
)
from margin_ext.training.evaluation import Evaluation, clean_accuracy
from margin_ext.training.loop import Training
from margin_ext.training.objective import Objective
from margin_ext.training.options import DIFFERENCE, OPTIONS, SECANT
from margin_ext.training.outcome import MEASURED, Contender, Outcome
from margin_ext.training.ranks import ALONE
from margin_ext.training.recipe import Recipe
from margin_ext.training.settings import SettingsError, settings_text
from margin_ext.training.sources import image_data, image_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from margin_ext.training.ranks import Ranks

__all__ = ["CHECKPOINT", "SETTINGS", "Run", "RunExistsError", "claim_folder"]

CHECKPOINT: Final = "checkpoint.pt"
SETTINGS: Final = "settings.toml"
HISTORY: Final = "history.jsonl"
REPORT: Final = "report.json"
TABLE: Final = "report.txt"
FIGURE: Final = "figure.png"
_FILES: Final = (CHECKPOINT, SETTINGS, HISTORY, REPORT, TABLE, FIGURE, MEASURED)


class RunExistsError(Exception):
    """The folder holds a run, and nobody said what is to become of it."""


def claim_folder(out: Path, ranks: Ranks, *, resume: bool, fresh: bool) -> None:
    """See that no run in the folder is lost by mistake, before anything is read or written.

    Raises:
        RunExistsError: It holds a run that is neither to be continued nor to be removed.
    """
    found = [name for name in (CHECKPOINT, SETTINGS) if (out / name).exists()]
    # The others may look when the first one writes already.
    found = ranks.told_by_first(found)
    if found and not (resume or fresh):
        raise RunExistsError(
            f"{out} holds a run ({found[0]}): add --resume to go on with it or --fresh to start "
            "over, or choose another --out"
        )


class Run:
    """A training by its settings, in its folder; for tables and figures the only outcome of it.

    Attributes:
        settings: All of them, as `completed` gives them.
        outcome: The training, its history and what was measured.
        trained: Whether all epochs are over, and kept.
    """

    def __init__(
        self, settings: Mapping[str, Any], out: Path, ranks: Ranks = ALONE, *, fresh: bool = False
    ) -> None:
        """Read the data, build the model, and take up what the folder holds.

        Args:
            settings: As `completed` gives them.
            out: The folder.
            ranks: The processes that train together; the first one measures and writes.
            fresh: Remove the run in the folder, once it is known that this one can begin.

        Raises:
            DataError: The data are missing or damaged.
            OtherSettingsError: The folder holds a run with other settings.
            SettingsError, ValueError: Settings, model and data do not fit together.
        """
        self.settings = dict(settings)
        self.out = out
        self.ranks = ranks
        self.device = _usable(ranks.device(settings["device"]))
        recipe = Recipe(**{name: settings[name] for name in Recipe.__dataclass_fields__})
        objective = _objective(settings, self.device)
        self.evaluation = _evaluation(settings)
        low, high = settings["data_range"]
        data = image_data(settings["data"], settings["data_dir"], (low, high))
        self.data = data.limited(train=settings["limit"], held_out=None)
        held_out = data.validation if settings["part"] == "validation" else data.test
        self.train = self._on_device(self.data.train)
        self.held_out = self._on_device(held_out)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            model = image_model(settings["model"], self.data)
        if fresh:
            self._remove_old()
        self.outcome = self._outcome(model.to(self.device), objective, recipe)
        self.trained = False

    def _remove_old(self) -> None:
        """Only what a run has written: the folder may hold other things."""
        if self.ranks.first:
            for name in _FILES:
                (self.out / name).unlink(missing_ok=True)
        self.ranks.told_by_first(None)

    def _on_device(
        self, part: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return part[0].to(self.device), part[1].to(self.device)

    def _outcome(self, model: nn.Module, objective: Objective, recipe: Recipe) -> Outcome:
        settings = self.settings
        augmentation = Augmentation(settings["crop"], settings["flip"])
        training = Training(
            model,
            self.train,
            objective,
            recipe,
            checkpoint=self.out / CHECKPOINT,
            settings={
                **{n: v for n, v in settings.items() if not OPTIONS[n].resumable},
                "images": data_digest(self.train),
                "processes": self.ranks.size,
            },
            augment=augmentation if augmentation else None,
            ranks=self.ranks,
        )
        followed = settings["monitor"] and self.ranks.first
        monitor = MarginMonitor(
            {"train": self.train, "held_out": self.held_out} if followed else {},
            p=self.evaluation.p,
            limit=settings["monitor_limit"],
            path=self.out / HISTORY if self.ranks.first else None,
            data_range=self.evaluation.data_range,
            input_std=self.evaluation.input_std,
            progress=False,
        )
        outcome = Outcome(Contender("run", _title(settings), objective), training, monitor)
        try:
            outcome.read_measured(self.evaluation)
        except OtherSettingsError:
            # Of fewer epochs, or in another way: it is measured anew.
            outcome.measured = None
        return outcome

    @property
    def outcomes(self) -> list[Outcome]:
        """The only one."""
        return [self.outcome]

    def write_settings(self) -> None:
        """Write settings.toml, from which the run can be repeated."""
        if not self.ranks.first:
            return
        head = (
            f"The settings of this run. To repeat it:\n"
            f"margin-ext train --config {self.out / SETTINGS} --out FOLDER"
        )
        text = settings_text(self.settings, head)
        write_atomically(self.out / SETTINGS, lambda file: file.write(text.encode()))

    def run(
        self, tell: Callable[[str], object] = lambda _: None, progress: bool | None = None
    ) -> None:
        """Train and measure what is left.

        Args:
            tell: Gets a line when something begins.
            progress: Show bars; None: on a terminal.

        Raises:
            DivergedError: The loss or the weights are not finite; the last checkpoint is kept.
            OSError: A file cannot be written; those that are there are whole.
        """
        training = self.outcome.training
        done, total = training.epoch, training.recipe.epochs
        parameters = sum(p.numel() for p in training.model.parameters())
        tell(
            f"{self.data.name}, {len(self.train[1])} training images; {self.settings['model']}, "
            f"{parameters} parameters; {total} epochs" + (f", {done} done before" if done else "")
        )
        self.write_settings()
        self.outcome.train("training", progress if self.ranks.first else False)
        self.trained = True
        if self.settings["report"] and self.ranks.first and self.outcome.measured is None:
            tell("measuring the trained model")
            self.outcome.measure(self.evaluation, self.train, self.held_out, progress)

    def write_report(self) -> str:
        """Write report.json and report.txt, of whatever there is.

        Returns:
            The text.
        """
        training = self.outcome.training
        measured = self.outcome.measured is not None or not self.settings["report"]
        # In the middle of an epoch the weights are nobody's.
        accuracy = clean_accuracy(training.model, self.held_out) if self.trained else None
        values = {
            "complete": self.trained and measured,
            "settings": self.settings,
            "environment": {**environment(self.device), "processes": self.ranks.size},
            "accuracy": accuracy,
            "loss": training.losses[-1] if training.losses else None,
            **outcome_dict(self.outcome, self.out),
        }
        text = comparison_table(self)
        if accuracy is not None:
            count = len(self.held_out[1])
            text += f"\nAccuracy on all {count} {self.settings['part']} images: {accuracy:.4f}."
        write_report(values, text, self.out / REPORT, self.out / TABLE)
        return text

    def draw(self) -> None:
        """Draw figure.png, of whatever there is.

        Raises:
            ImportError: There is no matplotlib.
        """
        save_figure(self, FIGURE)


def _usable(device: torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    # torch asserts that it was compiled for the device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"device {device} cannot be used: {reason}") from error
    return device


def _title(settings: Mapping[str, Any]) -> str:
    if settings["loss"] == "cross_entropy":
        title = "cross-entropy"
    else:
        margin = {
            "first_order": "first-order margin",
            "secant": "secant margin",
            "logit_gap": "logit gap",
        }
        title = f"{margin[settings['margin']]}, mu {settings['mu']:g}, tau {settings['tau']:g}"
    return title + (f", beta {settings['beta']:g}" if settings["beta"] else "")


def _objective(settings: Mapping[str, Any], device: torch.device) -> Objective:
    if settings["loss"] == "cross_entropy":
        criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=settings["label_smoothing"])
        return Objective(criterion, settings["beta"])
    names = [
        name
        for name, option in OPTIONS.items()
        if option.section == "loss" and name not in ("loss", "beta", *DIFFERENCE, *SECANT)
    ]
    options = {name: settings[name] for name in names}
    difference = FiniteDifference(**{f: settings[name] for name, f in DIFFERENCE.items()})
    modes = {"finite_difference": difference, "auto": Auto(difference)}
    options["gradient"] = modes.get(options["gradient"], options["gradient"])
    if options["margin"] == "secant":
        low, high = settings["data_range"]
        attack = {f: settings[name] for name, f in SECANT.items()}
        options["margin"] = Secant(data_range=(low, high), **attack)
    criterion = AverageMarginLoss(**options)
    if (
        settings["compile"] not in ("off", "eager")
        and settings["margin"] == "first_order"
        and settings["gradient"] == "double_backward"
    ):
        raise SettingsError(
            "compile needs gradient finite_difference, detached or auto: torch.compile has no "
            "double backward"
        )
    return Objective(criterion.to(device), settings["beta"])


def _evaluation(settings: Mapping[str, Any]) -> Evaluation:
    low, high = settings["data_range"]
    std = settings["input_std"]
    return Evaluation(
        tuple(settings["eps_attack"]),
        attack_steps=settings["attack_steps"],
        distance_steps=settings["distance_steps"],
        samples=settings["measure_limit"],
        part=settings["part"],
        p=float(settings["measure_p"]),
        restarts=settings["attack_restarts"],
        data_range=(low, high),
        input_std=tuple(std) if isinstance(std, list) else std,
    )
