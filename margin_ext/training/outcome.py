"""One training, its history, and what was measured at its end."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_ext.models.model_digest import model_digest
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.progress_bar import progress_bar
from margin_ext.training.checkpoint import require_same_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from margin_ext.measurement import MarginMonitor
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.loop import Training
    from margin_ext.training.objective import TrainingObjective

__all__ = ["Contender", "Outcome"]

MEASURED = "measured.json"


@dataclass(frozen=True)
class Contender:
    """One objective to compare.

    Attributes:
        key: Folder's name.
        title: For tables and figures.
        objective: What to minimise.
    """

    key: str
    title: str
    objective: TrainingObjective


@dataclass
class Outcome:
    """One contender's training, its history, and what was measured at the end (or None yet)."""

    contender: Contender
    training: Training
    monitor: MarginMonitor
    measured: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.training.checkpoint.parent

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

    def train(self, title: str, progress: bool | None = None) -> None:
        """Train the epochs that are left, and follow the margins over them.

        Args:
            title: Of the progress bar.
            progress: Show it; None: on a terminal.

        Raises:
            DivergedError: The objective leads to a loss or weights that are not finite.
            OSError: A file cannot be written.
        """
        training = self.training
        if training.epoch == 0:
            # First the state: it says to which settings the history belongs.
            training.save()
            if not self.monitor.history:
                self._follow({})
        left = training.recipe.epochs - training.epoch
        bar = progress_bar(left * training.data[1].shape[0], title, progress)
        try:
            for _ in training.epochs(bar.update):
                self._follow({"loss": training.losses[-1], "seconds": training.seconds[-1]})
        finally:
            bar.close()

    def _follow(self, values: Mapping[str, float]) -> None:
        training = self.training
        further = {"train": values} if values else {}
        try:
            self.monitor.epoch(training.model, training.epoch, further)
        except ValueError as error:
            # A network that is constant for the moment is no reason to stop.
            warnings.warn(f"margins after epoch {training.epoch}: {error}", stacklevel=4)

    def measure(
        self,
        evaluation: Evaluation,
        train: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        progress: bool | None = None,
    ) -> None:
        """Measure the model, and keep the values in its folder."""
        self.measured = evaluation.measure(self.training.model, train, held_out, progress)
        content = {"settings": self._measured_settings(evaluation), "values": self.measured}
        text = json.dumps(content)
        write_atomically(self.folder / MEASURED, lambda file: file.write(text.encode()))

    def read_measured(self, evaluation: Evaluation) -> None:
        """Take up what an earlier run measured.

        Raises:
            OtherSettingsError: It was measured in another way, or on other weights.
        """
        path = self.folder / MEASURED
        if not path.exists():
            return
        content = json.loads(path.read_text())
        require_same_settings(path, content["settings"], self._measured_settings(evaluation))
        self.measured = content["values"]

    def _measured_settings(self, evaluation: Evaluation) -> dict[str, Any]:
        return {**evaluation.settings(), "weights": model_digest(self.training.model)}
