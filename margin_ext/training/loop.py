"""Epochs of training that can be killed and continued without a trace in the result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from margin_ext.models.model_digest import model_digest
from margin_ext.training.checkpoint import read_state, write_state
from margin_ext.training.ranks import ALONE, Ranks
from margin_ext.training.recipe import PRECISIONS, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from margin_ext.training.objective import TrainingObjective

__all__ = ["DivergedError", "Recipe", "Training"]


class DivergedError(ArithmeticError):
    """Training ran into NaN or infinity."""


def _nothing(_: int) -> None:
    pass


class Training:
    """One model on its way through the epochs, with its state in a file after each of them.

    Attributes:
        epoch: Epochs done.
        seconds: Wall time of each of them.
        losses: Mean loss of each of them.
        initial_weights: Digest of the weights before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        objective: TrainingObjective,
        recipe: Recipe,
        *,
        checkpoint: Path,
        settings: Mapping[str, Any] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Continue from the checkpoint where there is one, else start with the model's weights.

        Args:
            model: Already on its device, with its initial weights.
            data: Inputs [N, ...] and target [N], on the same device; all of them in each process.
            objective: What to minimise.
            recipe: How.
            checkpoint: The file.
            settings: What else must agree for the file to be continued.
            augment: Changes the inputs [B, ...] of each step, at random.
            ranks: The processes that train it together; the first one writes.

        Raises:
            OtherSettingsError: The file belongs to another training.
        """
        self.model = model
        self.data = data
        self.objective = objective
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.augment = augment
        self.ranks = ranks
        self.initial_weights = model_digest(model)
        self.settings = {
            **(settings or {}),
            **objective.settings(),
            **recipe.settings(),
            "initial_weights": self.initial_weights,
        }
        self.optimizer = recipe.make_optimizer(model.parameters())
        # Switched off in other precisions: then it hands everything through.
        self.scaler = torch.amp.GradScaler(
            data[1].device.type, enabled=recipe.precision == "float16"
        )
        self.epoch = 0
        self.seconds: list[float] = []
        self.losses: list[float] = []
        state = read_state(checkpoint, self.settings)
        if state is not None:
            self._load(state)
        if ranks.told_by_first(self.epoch) != self.epoch:
            raise ValueError(
                f"process {ranks.rank} found epoch {self.epoch} in {checkpoint}, the first process "
                "another one: the folder must be the same for all"
            )
        self._runner = self._prepared()

    def _load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.epoch = int(state["epoch"])
        self.seconds = list(state["seconds"])
        self.losses = list(state.get("losses", []))
        if state.get("scaler_state_dict"):
            self.scaler.load_state_dict(state["scaler_state_dict"])
        if state.get("objective_state_dict"):
            self.objective.load_state_dict(state["objective_state_dict"])  # type: ignore[attr-defined]

    def _prepared(self) -> nn.Module:
        """The model as the steps run it."""
        if self.recipe.compile == "off":
            return self.ranks.wrapped(self.model)
        compiled: Any = torch.compile(self.model, backend=self.recipe.compile)
        return self.ranks.wrapped(compiled)

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

        Raises:
            DivergedError: The loss or the weights are NaN or infinite.
        """
        while self.epoch < self.recipe.epochs:
            start = time.perf_counter()
            with self._randomness():
                loss = self._one_epoch(after_step)
            self.losses.append(loss)
            self.seconds.append(time.perf_counter() - start)
            self.epoch += 1
            yield self.epoch
            self.save()

    def save(self) -> None:
        """Write the state.

        Raises:
            OSError: It cannot be written; the file is what it was.
        """
        if not self.ranks.first:
            return
        objective_state = getattr(self.objective, "state_dict", dict)
        state = {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scaler_state_dict": self.scaler.state_dict(),
            "objective_state_dict": objective_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        write_state(self.checkpoint, state, self.settings)

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Random numbers of this epoch, which depend on seed, epoch and process alone.

        So a continued training draws the same ones, whatever was drawn in between.
        """
        device = self.data[1].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.recipe.epoch_seed(self.epoch, self.ranks.rank))
            yield

    def _one_epoch(self, after_step: Callable[[int], object]) -> float:
        """Mean loss of the epoch."""
        inputs, target = self.data
        order = self.recipe.order(target.shape[0], self.epoch).to(target.device)
        self._runner.train()
        total = self.recipe.epochs * self.steps_per_epoch
        losses = []
        for step, batch in enumerate(order.split(self.recipe.batch_size)):
            rate = self.recipe.rate((self.epoch * self.steps_per_epoch + step) / total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            part, factor = self.ranks.share(batch)
            loss = self._step(inputs[part], target[part], factor)
            losses.append(loss)
            # Looking at a loss waits for a GPU; and a process that left alone would leave the
            # others waiting.
            if loss.device.type == "cpu" and not self.ranks.joined:
                self._require_finite(losses[-1:], step)
            after_step(batch.shape[0])
        self._require_finite(losses)
        # Looking at the weights also waits for a GPU, so that the epoch's time is its own.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged(f"the weights are no longer finite after epoch {self.epoch + 1}")
        counts = torch.tensor([len(batch) for batch in order.split(self.recipe.batch_size)])
        weights = (counts / counts.sum()).to(target.device)
        mean = self.ranks.mean((torch.stack(losses).float() * weights).sum())
        return float(mean)

    def _step(self, inputs: Tensor, target: Tensor, factor: float) -> Tensor:
        """One step of the optimizer; the loss, weighted by what it counts."""
        if self.augment is not None:
            inputs = self.augment(inputs)
        self.optimizer.zero_grad()
        precision = PRECISIONS[self.recipe.precision]
        with torch.autocast(inputs.device.type, precision, enabled=precision is not torch.float32):
            loss = self.objective.loss(self._runner, inputs, target)
        loss = loss if factor == 1 else loss * factor
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _require_finite(self, losses: list[Tensor], first: int = 0) -> None:
        """Raise DivergedError with the first step whose loss is not finite, in any process."""
        bad = ~torch.stack(losses).isfinite()
        none = len(losses)
        step = torch.where(bad.any(), bad.int().argmax(), none)
        found = int(self.ranks.minimum(step))
        if found < none:
            raise self._diverged(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {first + found + 1} "
                f"of {self.steps_per_epoch}"
            )

    def _diverged(self, what: str) -> DivergedError:
        kept = f". {self.checkpoint} keeps the state after epoch {self.epoch}"
        return DivergedError(
            f"{what}: lower the learning rate or the weight of the regularizer"
            + (kept if self.checkpoint.exists() else "")
        )
