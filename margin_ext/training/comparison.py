"""The same network trained for several objectives, and what came of each."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch

from margin_ext.measurement import MarginMonitor
from margin_ext.training.loop import Training
from margin_ext.training.outcome import Contender, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from margin_ext.data.image_data import ImageData
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.loop import Recipe

__all__ = ["Comparison", "Contender", "Outcome"]

# Margins are followed over the epochs on this many images of each part.
MONITORED = 500


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
        outcome = Outcome(contender, training, monitor)
        outcome.read_measured(self.evaluation)
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
            outcome.train(title, progress)
            trained = time.perf_counter()
            outcome.measure(self.evaluation, self.train, self.held_out, progress)
            tell(
                f"{title}: trained and followed in {trained - start:.1f} s, measured in "
                f"{time.perf_counter() - trained:.1f} s"
            )
