"""The same network trained for several objectives, and what came of each."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from margin_ext.measurement import MarginMonitor
from margin_ext.measurement.files import write_atomically
from margin_ext.measurement.partial_results import model_digest
from margin_ext.measurement.progress import progress_bar
from margin_ext.training.checkpoint import require_same_settings
from margin_ext.training.loop import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from margin_ext.training.data import ImageData
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.loop import Recipe
    from margin_ext.training.objective import Objective

__all__ = ["Comparison", "Contender", "Outcome"]

# Margins are followed over the epochs on this many images of each part.
MONITORED = 500


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
    objective: Objective


@dataclass
class Outcome:
    """One contender's training, its history, and what was measured at the end (or None yet)."""

    contender: Contender
    training: Training
    monitor: MarginMonitor
    measured: dict[str, Any] | None

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
        records = [r for r in self.monitor.history if r["split"] == split]
        return records[-1] if records else None


class Comparison:
    """Trainings from the same weights, in the same order of samples; only the objective differs.

    Everything is kept in a folder as it comes: `run` goes on from what is there, and whatever is
    there can be tabulated and drawn.

    Attributes:
        outcomes: One for each contender, in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        contenders: Sequence[Contender],
        recipe: Recipe,
        evaluation: Evaluation,
        out: Path,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read what an earlier run left in the folder.

        Args:
            model: With the initial weights; it is copied for each contender.
            data: What to train and to report on.
            contenders: What to compare.
            recipe: How all of them are trained.
            evaluation: How all of them are measured.
            out: The folder.
            device: Where to train and to measure.

        Raises:
            OtherSettingsError: The folder holds a run with other settings.
        """
        self.data = data
        self.recipe = recipe
        self.evaluation = evaluation
        self.out = out
        self.device = torch.device(device)
        self.train = self._on_device(data.train)
        self.held_out = self._on_device(
            data.validation if evaluation.part == "validation" else data.test
        )
        self.settings = {
            "data": data.name,
            "images": len(data.train[1]),
            "model": repr(model),
            "part": evaluation.part,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }
        self.outcomes = [self._outcome(contender, model) for contender in contenders]

    def _on_device(self, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return part[0].to(self.device), part[1].to(self.device)

    def _outcome(self, contender: Contender, model: nn.Module) -> Outcome:
        folder = self.out / contender.key
        training = Training(
            copy.deepcopy(model).to(self.device),
            self.train,
            contender.objective,
            self.recipe,
            checkpoint=folder / "checkpoint.pt",
            settings=self.settings,
        )
        monitor = MarginMonitor(
            {"train": self.train, "held_out": self.held_out},
            limit=min(MONITORED, self.evaluation.samples or MONITORED),
            path=folder / "history.jsonl",
            progress=False,
        )
        outcome = Outcome(contender, training, monitor, None)
        outcome.measured = self._read_measured(outcome)
        return outcome

    def run(
        self,
        tell: Callable[[str], object] = lambda _: None,
        progress: bool | None = None,
    ) -> None:
        """Train and measure what is left.

        Args:
            tell: Gets a line when a contender begins and when it is done.
            progress: Show bars; None: on a terminal.

        Raises:
            DivergedError: An objective leads to weights that are not finite.
        """
        for number, outcome in enumerate(self.outcomes, 1):
            title = f"{outcome.contender.title} ({number} of {len(self.outcomes)})"
            if outcome.measured is not None:
                tell(f"{title}: done before")
                continue
            done = outcome.training.epoch
            tell(f"{title}: {self.recipe.epochs} epochs" + (f", {done} done before" * bool(done)))
            start = time.perf_counter()
            self._train(outcome, title, progress)
            trained = time.perf_counter()
            outcome.measured = self.evaluation.measure(
                outcome.training.model, self.train, self.held_out, progress
            )
            self._write_measured(outcome)
            tell(
                f"{title}: trained and followed in {trained - start:.1f} s, measured in "
                f"{time.perf_counter() - trained:.1f} s"
            )

    def _train(self, outcome: Outcome, title: str, progress: bool | None) -> None:
        training, monitor = outcome.training, outcome.monitor
        if not monitor.history:
            # First the state: it says to which settings the history belongs.
            training.save()
            monitor.epoch(training.model, 0)
        left = self.recipe.epochs - training.epoch
        bar = progress_bar(left * len(self.train[1]), title, progress)
        try:
            for epoch in training.epochs(bar.update):
                monitor.epoch(training.model, epoch)
        finally:
            bar.close()

    def _measured_settings(self, outcome: Outcome) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.evaluation),
            "weights": model_digest(outcome.training.model),
        }

    def _write_measured(self, outcome: Outcome) -> None:
        content = {"settings": self._measured_settings(outcome), "values": outcome.measured}
        text = json.dumps(content)
        write_atomically(outcome.folder / "measured.json", lambda file: file.write(text.encode()))

    def _read_measured(self, outcome: Outcome) -> dict[str, Any] | None:
        path = outcome.folder / "measured.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        require_same_settings(path, content["settings"], self._measured_settings(outcome))
        values: dict[str, Any] = content["values"]
        return values
