"""Epochs of training that can be killed and continued without a trace in the result."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from margin_ext.measurement.partial_results import model_digest
from margin_ext.training.checkpoint import read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from margin_ext.training.objective import Objective

__all__ = ["DivergedError", "Recipe", "Training"]


@dataclass(frozen=True)
class Recipe:
    """How weights are stepped; the same for every objective that is compared.

    Attributes:
        epochs: Passes through the training data.
        batch_size: Of each step.
        learning_rate: At its peak: it rises over the first fifth and falls to 0 by a cosine.
        momentum: Nesterov's.
        seed: Of the initial weights and of the order of the samples.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    seed: int = 0

    def rate(self, done: float) -> float:
        """Learning rate after a share of the training."""
        warm = 0.2
        if done < warm:
            return self.learning_rate * (0.05 + 0.95 * done / warm)
        return self.learning_rate * (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2

    def order(self, count: int, epoch: int) -> Tensor:
        """The samples in the order of this epoch: a function of seed and epoch alone.

        So a continued training needs no random state from the one that was killed.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=generator)


class DivergedError(ArithmeticError):
    """Training ran into NaN or infinity."""


def _nothing(_: int) -> None:
    pass


class Training:
    """One model on its way through the epochs, with its state in a file after each of them.

    Attributes:
        epoch: Epochs done.
        seconds: Wall time of each of them.
        initial_weights: Digest of the weights before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        objective: Objective,
        recipe: Recipe,
        *,
        checkpoint: Path,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Continue from the checkpoint where there is one, else start with the model's weights.

        Args:
            model: Already on its device, with its initial weights.
            data: Inputs [N, ...] and target [N], on the same device.
            objective: What to minimise.
            recipe: How.
            checkpoint: The file.
            settings: What else must agree for the file to be continued.

        Raises:
            OtherSettingsError: The file belongs to another training.
        """
        self.model = model
        self.data = data
        self.objective = objective
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.initial_weights = model_digest(model)
        self.settings = {
            **(settings or {}),
            **objective.settings(),
            **dataclasses.asdict(recipe),
            "initial_weights": self.initial_weights,
        }
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True
        )
        self.epoch = 0
        self.seconds: list[float] = []
        state = read_state(checkpoint, self.settings)
        if state is not None:
            self.model.load_state_dict(state["model_state_dict"])
            self.optimizer.load_state_dict(state["optimizer_state_dict"])
            self.epoch = int(state["epoch"])
            self.seconds = list(state["seconds"])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.data[1].shape[0] / self.recipe.batch_size)

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the epochs; NaN before the first."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    def epochs(self, after_step: Callable[[int], object] = _nothing) -> Iterator[int]:
        """Train the epochs that are left; yields the number of epochs done, after each.

        ``after_step`` gets the number of samples of each step.

        What the caller does before it asks for the next one happens before the state is written:
        so whatever belongs to an epoch is there when the checkpoint says that it is done.
        """
        while self.epoch < self.recipe.epochs:
            start = time.perf_counter()
            self._one_epoch(after_step)
            self.seconds.append(time.perf_counter() - start)
            self.epoch += 1
            yield self.epoch
            self.save()

    def save(self) -> None:
        """Write the state."""
        state = {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        write_state(self.checkpoint, state, self.settings)

    def _one_epoch(self, after_step: Callable[[int], object]) -> None:
        inputs, target = self.data
        order = self.recipe.order(target.shape[0], self.epoch).to(target.device)
        self.model.train()
        total = self.recipe.epochs * self.steps_per_epoch
        for step, batch in enumerate(order.split(self.recipe.batch_size)):
            rate = self.recipe.rate((self.epoch * self.steps_per_epoch + step) / total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad()
            self.objective.loss(self.model, inputs[batch], target[batch]).backward()
            self.optimizer.step()
            after_step(batch.shape[0])
        # Looking at the weights also waits for a GPU, so that the epoch's time is its own.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise DivergedError(
                f"the weights are no longer finite after epoch {self.epoch + 1}: lower the "
                "learning rate or the weight of the regularizer"
            )
