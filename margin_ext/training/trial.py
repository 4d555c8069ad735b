"""A trial: one model, trained for one objective in a folder of its own, followed and measured."""

from __future__ import annotations

import json
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from margin_ext.measurement import MarginMonitor
from margin_ext.measurement.split_models import is_split, whole_model
from margin_ext.models.model_digest import model_digest
from margin_ext.output.atomic_write import write_text
from margin_ext.output.exclusive import exclusive
from margin_ext.output.finite_json import finite_json
from margin_ext.output.json_file import read_json
from margin_ext.output.progress_bar import progress_bar
from margin_ext.together import RankFailedError, Together
from margin_ext.training.evaluation import clean_accuracy
from margin_ext.training.run_options import RunOptions
from margin_ext.training.training_loop import TrainingLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from margin_ext.data.image_data import ImageData, Labelled
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.recipe import Recipe
    from margin_ext.training.training_objective import TrainingObjective

__all__ = [
    "CHECKPOINT",
    "FIGURE",
    "HISTORY",
    "MEASURED",
    "REPORT",
    "SETTINGS",
    "TABLE",
    "Trial",
    "kept_settings",
]

SETTINGS: Final = "settings.toml"
CHECKPOINT: Final = "checkpoint.pt"
HISTORY: Final = "history.jsonl"
MEASURED: Final = "measured.json"
REPORT: Final = "report.json"
TABLE: Final = "report.txt"
FIGURE: Final = "figure.png"
# The checkpoint goes last: as long as it is there, settings.toml is not that of a new run.
_FILES: Final = (SETTINGS, HISTORY, MEASURED, REPORT, TABLE, FIGURE, CHECKPOINT)
# There while an old run is removed. A kill in between leaves it, and the removal goes on.
_REMOVING: Final = ".removing"


def _silent(_: str) -> None:
    pass


class Trial:
    """One model, trained for one objective, with all that is known of it in a folder.

    `run` goes on from what the folder holds. A kill at any moment costs at most the work since the
    checkpoint was last written: checkpoint.pt holds the history too, and the other files are
    written from it.

    Attributes:
        title: For tables and figures.
        folder: Where its files are.
        data: What it is trained and measured on.
        train: Training images and labels, on the device.
        held_out: Images and labels that are reported on.
        loop: Its epochs.
        monitor: The margins over the epochs.
        measured: What `Evaluation.measure` found at the end; None before.

    >>> import tempfile
    >>> from margin_ext.data import load_data
    >>> from margin_ext.models.small_cnn import small_cnn
    >>> from margin_ext.training import Evaluation, Objective, Recipe, Trial
    >>> data = load_data("digits").limited(train=64, held_out=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trial = Trial(small_cnn(data.shape), data, Objective(torch.nn.CrossEntropyLoss()),
    ...                   Recipe(epochs=1), Evaluation((0.5,), attack_steps=2), folder)
    ...     trial.run()
    >>> trial.loop.epoch, trial.measured["train"]["count"]
    (1, 64)
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        objective: TrainingObjective,
        recipe: Recipe,
        evaluation: Evaluation,
        folder: str | Path,
        options: RunOptions | None = None,
        *,
        title: str = "",
        monitor_limit: int | None = 500,
        report: bool = True,
        settings_toml: str | None = None,
        run_settings: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        fresh: bool = False,
    ) -> None:
        """Read what an earlier run left in the folder.

        Args:
            model: With its initial weights. It is trained in place, and moved to the device.
            data: What to train and to report on.
            objective: What to minimise.
            recipe: How weights are stepped.
            evaluation: How the trained model is measured.
            folder: Where its files are; made where it is missing.
            options: How it runs, and what else must agree for it to be continued; None: the
                defaults.
            title: For tables and figures.
            monitor_limit: Images of each part on which margins are followed over the epochs; None:
                margins are not followed.
            report: Whether to measure the trained model.
            settings_toml: Text of settings.toml, from which the run can be repeated.
            run_settings: The settings in that text, for the report.
            device: Where to train and to measure.
            fresh: Remove the run in the folder.

        Raises:
            InUseError: The run is to be removed, and another process trains it.
            OtherSettingsError: The folder holds a run with other settings.
            ValueError: Its checkpoint is damaged.
        """
        device = torch.device(device)
        options = RunOptions() if options is None else options
        self.title = title
        self.folder = Path(folder)
        self.data = data
        self.evaluation = evaluation
        self.report = report
        self.ranks = options.ranks
        self.settings_toml = settings_toml
        self.run_settings = run_settings
        self.train = _on(device, data.train)
        self.held_out = _on(device, getattr(data, evaluation.part))
        self.measured: dict[str, Any] | None = None
        self._accuracy: float | None = None
        if fresh or (self.folder / _REMOVING).exists():
            with self._claimed():
                self._remove_old()
        self.loop = TrainingLoop(
            model.to(device), self.train, objective, recipe, self.folder / CHECKPOINT, options
        )
        self.monitor = MarginMonitor(
            {} if monitor_limit is None else {"train": self.train, "held_out": self.held_out},
            limit=monitor_limit,
            progress=False,
            ranks=self.ranks,
            **evaluation.threat_keywords(),
        )
        self._read()
        self._seen = self._stamp()

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the folder's lock in rank 0; every rank raises InUseError if another run has it."""
        with ExitStack() as held:
            problem = None
            if self.ranks.is_main:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(exclusive(self.folder))
                except OSError as error:
                    problem = error
            problem = self.ranks.broadcast_from_rank0(problem)
            if problem is not None:
                raise problem
            yield

    def _remove_old(self) -> None:
        """Only what a trial has written: the folder may hold other things."""
        if self.ranks.is_main:
            (self.folder / _REMOVING).touch()
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
            (self.folder / _REMOVING).unlink()
        self.ranks.broadcast_from_rank0(None)

    def _stamp(self) -> tuple[int, ...]:
        """By which another checkpoint is recognised."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return ()
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _read(self) -> None:
        self.monitor.history = self.loop.history
        self.measured = None
        if not self.loop.finished:
            return
        settings, path = self._measured_settings(), self.folder / MEASURED
        if self.ranks.is_main and path.is_file():
            # What is damaged, or was measured otherwise or on other weights, is measured again.
            with suppress(OSError, ValueError):
                content = read_json(path)
                if content.get("settings") == settings:
                    self.measured = content.get("values")
        self.measured = self.ranks.broadcast_from_rank0(self.measured)

    def _measured_settings(self) -> Any:
        """How the values of measured.json were measured, and on what weights, as JSON has it."""
        settings = {**self.evaluation.settings(), "weights": model_digest(self.model)}
        return json.loads(json.dumps(settings))

    @property
    def model(self) -> nn.Module:
        """The trained network."""
        return self.loop.result

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.loop.finished and (self.measured is not None or not self.report)

    def totals(self, split: str) -> dict[str, Any] | None:
        """Accuracy and margins on "train" or "held_out".

        From the final measurement, or else from the last epoch's (on fewer images); None before
        the first.
        """
        if self.measured is not None:
            totals: dict[str, Any] = self.measured[split]
            return totals
        records = [r for r in self.monitor.history if r["split"] == split and "accuracy" in r]
        return records[-1] if records else None

    def run(self, tell: Callable[[str], object] = _silent, progress: bool | None = None) -> None:
        """Train and measure what is left.

        Args:
            tell: Gets a line when something begins or ends.
            progress: Show bars; None: on a terminal.

        Raises:
            DivergedError: The loss or the weights are not finite; the last checkpoint is kept.
            InUseError: Another process trains in the folder.
            OSError: A file cannot be written; those that are there are whole.
            ValueError: The trained model cannot be measured.
        """
        with self._claimed():
            if self.ranks.broadcast_from_rank0(self._stamp() != self._seen):
                # Another process was here in between, or this one was interrupted in mid-epoch.
                self.loop.load()
                self._read()
            self._seen = (-1,)
            start = time.perf_counter()
            tell(self._beginning())
            self._train(progress if self.ranks.is_main else False)
            trained = time.perf_counter()
            if self.report and self.measured is None:
                tell("measuring the trained model")
                self._measure(progress)
                tell(
                    f"trained and followed in {trained - start:.1f} s, measured in "
                    f"{time.perf_counter() - trained:.1f} s"
                )
            if is_split(self.model) and self.loop.finished:
                # All ranks run such a model together, and the report is written by one.
                with Together(self.ranks) as meeting, whole_model(self.model, meeting):
                    self._accuracy = clean_accuracy(self.model, self.held_out)

    def _beginning(self) -> str:
        done, total = self.loop.epoch, self.loop.recipe.epochs
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"{self.title}: {self.data.name}, {len(self.train[1])} training images; {parameters} "
            f"parameters; {total} epochs" + (f", {done} done before" if done else "")
        )

    def _train(self, progress: bool | None) -> None:
        loop = self.loop
        if self.ranks.is_main and self.settings_toml is not None:
            write_text(self.folder / SETTINGS, self.settings_toml)
        if self.ranks.broadcast_from_rank0(not loop.checkpoint.exists()):
            self._follow({})
            loop.save()
        self._write_history()
        left = loop.recipe.epochs - loop.epoch
        bar = progress_bar(left * len(self.train[1]), self.title or "training", progress)
        try:
            for _ in loop.epochs(bar.update):
                self._follow({"loss": loop.losses[-1], "seconds": loop.seconds[-1]})
                self._write_history()
        finally:
            bar.close()

    def _follow(self, values: Mapping[str, float]) -> None:
        """Add the margins of this epoch to the history, and other values of the training part."""
        further = {"train": values} if values else {}
        self.ranks.share_buffers(self.model)
        try:
            with warnings.catch_warnings():
                # So may the small logits of a network that has not learned yet.
                warnings.filterwarnings("ignore", ".*seems to return probabilities", UserWarning)
                self.monitor.epoch(self.model, self.loop.epoch, further)
        except (ValueError, RankFailedError) as error:
            # A network that is constant for the moment is no reason to stop.
            if self.ranks.is_main:
                warnings.warn(f"margins after epoch {self.loop.epoch}: {error}", stacklevel=5)

    def _write_history(self) -> None:
        """History.jsonl from the history that the checkpoint holds too."""
        if self.ranks.is_main:
            lines = [json.dumps(finite_json(record)) + "\n" for record in self.loop.history]
            write_text(self.folder / HISTORY, "".join(lines))

    def _measure(self, progress: bool | None) -> None:
        """Measure the model, and keep the values in the folder."""
        self.ranks.share_buffers(self.model)
        self.measured = self.evaluation.measure(
            self.model, self.train, self.held_out, progress, self.ranks
        )
        content = {"settings": self._measured_settings(), "values": self.measured}
        if self.ranks.is_main:
            write_text(self.folder / MEASURED, json.dumps(content))

    def accuracy(self) -> float | None:
        """Accuracy on all held-out images.

        None before the last epoch is done: weights in mid-epoch match no checkpoint.
        """
        if self.loop.finished and self._accuracy is None:
            return clean_accuracy(self.model, self.held_out)
        return self._accuracy

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Plain values, with the places of its files relative to ``root``."""
        measured, loop = self.measured, self.loop
        return {
            "key": self.folder.name,
            "title": self.title,
            **loop.objective.settings(),
            "initial_weights": loop.initial_weights,
            "epochs": loop.epoch,
            "epochs_planned": loop.planned,
            "seconds_per_epoch": loop.seconds_per_epoch,
            "train": self.totals("train"),
            "held_out": self.totals("held_out"),
            "robust_accuracy": None if measured is None else measured["robust_accuracy"],
            "checkpoint": str(loop.checkpoint.relative_to(root)),
            "history": str((self.folder / HISTORY).relative_to(root)),
        }


def kept_settings(folder: Path) -> Path | None:
    """The settings file of the run in a folder; None where there is none that counts."""
    path = folder / SETTINGS
    being_removed = (folder / _REMOVING).exists() and (folder / CHECKPOINT).exists()
    return path if path.exists() and not being_removed else None


def _on(device: torch.device, part: Labelled) -> Labelled:
    return part[0].to(device), part[1].to(device)
