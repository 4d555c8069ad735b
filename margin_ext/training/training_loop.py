"""Epochs of training that can be killed and continued without a trace in the result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from margin_ext.measurement.split_models import is_split
from margin_ext.models.model_digest import model_digest
from margin_ext.together import Together
from margin_ext.training.run_options import RunOptions
from margin_ext.training.settled_buckets import settle_buckets
from margin_ext.training.training_state import read_state, write_state
from margin_ext.training.weight_average import WeightAverage
from margin_ext.training.whole_state import load_whole_state, whole_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from margin_ext.training.recipe import Recipe
    from margin_ext.training.training_objective import TrainingObjective

__all__ = ["DivergedError", "TrainingLoop"]

# Saving in mid-epoch may take this fraction of the time.
_SAVING_FRACTION = 0.02
# After so many steps at the latest, several processes ask again whether to save.
_MOST_STEPS = 1000


class DivergedError(ArithmeticError):
    """Training ran into NaN or infinity.

    Example:
        >>> import tempfile
        >>> from margin_ext.training import Objective, Recipe
        >>> data = torch.tensor([[torch.inf, 0.0]]), torch.tensor([0])
        >>> objective, recipe = Objective(nn.CrossEntropyLoss()), Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint.pt"
        ...     loop = TrainingLoop(nn.Linear(2, 2), data, objective, recipe, file)
        ...     list(loop.epochs())
        Traceback (most recent call last):
            ...
        margin_ext.training.training_loop.DivergedError: the loss is no longer finite in epoch 1...
    """


def _nothing(_: int) -> None:
    pass


class TrainingLoop:
    """The epochs of one model, with their state in a file.

    Attributes:
        epoch: Number of epochs done.
        seconds: Wall time of each of them.
        losses: Mean loss of each of them.
        history: Plain values that the caller wants to keep with the state.
        planned: The number of epochs that were planned, and from which epoch on: more than one
            pair if a training was made longer.
        initial_weights: Digest of the weights before the first step.
        average: The average of the weights, if the recipe asks for one.

    Example:
        >>> import tempfile
        >>> from margin_ext.training import Objective, Recipe
        >>> data, model = (torch.eye(4), torch.tensor([0, 0, 1, 1])), nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file, recipe = Path(folder) / "checkpoint.pt", Recipe(epochs=2, batch_size=2)
        ...     loop = TrainingLoop(model, data, Objective(nn.CrossEntropyLoss()), recipe, file)
        ...     list(loop.epochs())
        [1, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        objective: TrainingObjective,
        recipe: Recipe,
        checkpoint: Path,
        options: RunOptions | None = None,
    ) -> None:
        """Continue from the checkpoint if there is one, or else start with the model's weights.

        Args:
            model: Already on its device, with its initial weights.
            data: Inputs [N, ...] and target [N], on the same device; all of them in each process.
            objective: What to minimise.
            recipe: How weights are stepped.
            checkpoint: The file.
            options: How it runs; None: the defaults.

        Raises:
            OtherSettingsError: The file belongs to another training.
            ValueError: The file is damaged, or processes find different files.
        """
        self.model = model
        self.data = data
        self.objective = objective
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.options = RunOptions() if options is None else options
        self.ranks = self.options.ranks
        self.initial_weights = model_digest(model)
        self.settings = {
            **self.options.settings,
            **objective.settings(),
            **recipe.settings(),
            "initial_weights": self.initial_weights,
        }
        self.optimizer = recipe.make_optimizer(model.parameters())
        # In other precisions it is switched off and hands everything through.
        self.scaler = torch.amp.GradScaler(
            data[1].device.type, enabled=recipe.precision == "float16"
        )
        if recipe.weight_average and is_split(model):
            raise ValueError(
                "weight_average keeps a second model, which cannot be made of one that is split "
                "over ranks by fully_shard: leave it out"
            )
        self.average = (
            WeightAverage(model, recipe.weight_average) if recipe.weight_average else None
        )
        self.epoch = 0
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.planned: list[list[int]] = []
        # Of an epoch under way: its steps' losses and random states, by process, and its seconds.
        self._partial: dict[str, Any] = {}
        # Steps until the processes ask rank 0 again whether to save.
        self._steps_to_ask = self._asked_steps = 1
        self._asked = time.monotonic()
        self._saved = time.monotonic()
        self._saving = 0.0
        self.load()
        self._runner = self._prepared()

    def load(self) -> None:
        """Go on from what the checkpoint holds, if there is one.

        All processes read the file that rank 0 has written.

        Raises:
            OtherSettingsError: The file belongs to another training.
            ValueError: The file is damaged, or processes find different files.
        """
        with Together(self.ranks) as meeting:
            state = read_state(self.checkpoint, self.settings)
            if state is not None:
                self._take(state)
            found = meeting.exchange((self.epoch, self._steps_done))
            if found[0] != (self.epoch, self._steps_done):
                raise ValueError(
                    f"process {self.ranks.rank} found epoch {self.epoch}, step {self._steps_done} "
                    f"in {self.checkpoint}, rank 0 another one: the folder must be the same for all"
                )
        if not self.planned or self.planned[-1][1] != self.recipe.epochs:
            self.planned.append([self.epoch, self.recipe.epochs])

    @property
    def _steps_done(self) -> int:
        """Of the epoch under way, as the checkpoint has it."""
        return self._partial["losses"].shape[1] if self._partial else 0

    def _take(self, state: Mapping[str, Any]) -> None:
        epoch = int(state["epoch"])
        if epoch > self.recipe.epochs:
            raise ValueError(
                f"{self.checkpoint} holds {epoch} epochs, more than the {self.recipe.epochs} that "
                "are wanted: a training can become longer, not shorter"
            )
        trained = "model_state_dict"
        if self.average is not None:
            self.average.model.load_state_dict(state["model_state_dict"])
            trained = "trained_model_state_dict"
        load_whole_state(self.model, self.optimizer, state[trained], state["optimizer_state_dict"])
        self.epoch = epoch
        self.seconds = list(state["seconds"])
        self.losses = list(state["losses"])
        self.history = list(state["history"])
        self.planned = [list(pair) for pair in state["planned"]]
        self._partial = dict(state["partial"])
        if self._partial and self._partial["losses"].dim() == 1:  # of version 0.1.0: one process
            self._partial["losses"] = self._partial["losses"].unsqueeze(0)
            self._partial["random"] = [self._partial["random"]]
        if state["scaler_state_dict"]:
            self.scaler.load_state_dict(state["scaler_state_dict"])
        if state["objective_state_dict"]:
            self.objective.load_state_dict(state["objective_state_dict"])  # type: ignore[attr-defined]

    def _prepared(self) -> nn.Module:
        """The model as the steps run it."""
        compiled: Any = self.model
        if self.recipe.compile != "off":
            compiled = torch.compile(self.model, backend=self.recipe.compile)
        runner = self.ranks.wrapped(compiled)
        if runner is not compiled:
            settle_buckets(runner, self.data[0][:1])
        return runner

    @property
    def result(self) -> nn.Module:
        """The trained model: that with the averaged weights if the recipe asks for an average."""
        return self.model if self.average is None else self.average.model

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.data[1].shape[0] / self.recipe.batch_size)

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the epochs; NaN before the first."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch == self.recipe.epochs

    def epochs(self, after_step: Callable[[int], object] = _nothing) -> Iterator[int]:
        """Train the epochs that are left; yields the number of epochs done, after each.

        The state is written when the caller asks for the next epoch. So whatever the caller adds to
        ``history`` about an epoch is in the file when the file says that the epoch is done.

        Args:
            after_step: Gets the number of samples of each step.

        Raises:
            DivergedError: The loss or the weights are NaN or infinite.
        """
        while not self.finished:
            start = time.perf_counter() - self._partial.get("seconds", 0.0)
            with self._randomness():
                loss = self._one_epoch(after_step, start)
            self._partial = {}
            if self.average is not None and self.ranks.is_main:
                inputs = self.data[0]
                self.average.recompute_statistics(self.model, inputs, self.recipe.batch_size)
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
        start = time.monotonic()
        trained, of_optimizer = whole_state(self.model, self.optimizer)
        if not self.ranks.is_main:
            return
        objective_state = getattr(self.objective, "state_dict", dict)
        state = {
            "model_state_dict": trained if self.average is None else self.result.state_dict(),
            "optimizer_state_dict": of_optimizer,
            "scaler_state_dict": self.scaler.state_dict(),
            "objective_state_dict": objective_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "losses": self.losses,
            "history": self.history,
            "planned": self.planned,
            "partial": self._partial,
        }
        if self.average is not None:
            state["trained_model_state_dict"] = trained
        write_state(self.checkpoint, state, self.settings)
        self._saved = time.monotonic()
        self._saving = self._saved - start

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Random numbers of this epoch, which depend on seed, epoch and process alone.

        So a continued training draws the same ones, whatever was drawn in between.
        """
        device = self.data[1].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.recipe.epoch_seed(self.epoch, self.ranks.rank))
            kept = self._partial.get("random")
            for name, state in kept[self.ranks.rank].items() if kept else ():
                if name == "cuda":
                    torch.cuda.set_rng_state(state, device)
                else:
                    torch.set_rng_state(state)
            yield

    def _one_epoch(self, after_step: Callable[[int], object], start: float) -> float:
        """Mean loss of the epoch."""
        inputs, target = self.data
        order = self.recipe.order(target.shape[0], self.epoch).to(target.device)
        batches = order.split(self.recipe.batch_size)
        self._runner.train()
        total = self.recipe.epochs * self.steps_per_epoch
        done = self._partial.get("losses")
        losses = [] if done is None else list(done[self.ranks.rank].to(target.device).unbind())
        for step, batch in enumerate(batches[len(losses) :], len(losses)):
            rate = self.recipe.rate((self.epoch * self.steps_per_epoch + step) / total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            part, weight = self.ranks.part(batch)
            with self._samples(part):
                losses.append(self._step(inputs[part], target[part], weight))
            if self.average is not None:
                self.average.update(self.model, self.epoch * self.steps_per_epoch + step)
            # Looking at a loss waits for a GPU; and a process that left alone would leave the
            # others waiting.
            if losses[-1].device.type == "cpu" and not self.ranks.joined:
                self._require_finite(losses[-1:], step)
            after_step(batch.shape[0])
            if self._save_is_due() and step + 1 < len(batches):
                self._save_in_mid_epoch(losses, time.perf_counter() - start)
        self._require_finite(losses)
        self._require_finite_weights()
        counts = torch.tensor([len(batch) for batch in batches])
        weights = (counts / counts.sum()).to(target.device)
        mean = self.ranks.mean((torch.stack(losses).float() * weights).sum())
        return float(mean)

    def _samples(self, part: Tensor) -> AbstractContextManager[None]:
        """Tell an objective that asks for it which samples a step is about."""
        tell = getattr(self.objective, "samples", None)
        return nullcontext() if tell is None else tell(part)

    def _step(self, inputs: Tensor, target: Tensor, weight: float) -> Tensor:
        """One step of the optimizer; the weighted loss."""
        if self.options.augment is not None:
            inputs = self.options.augment(inputs)
        self.optimizer.zero_grad()
        precision = self.recipe.autocast
        with torch.autocast(inputs.device.type, precision, enabled=precision is not None):
            loss = self.objective.loss(self._runner, inputs, target)
        loss = loss if weight == 1 else loss * weight
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _save_is_due(self) -> bool:
        """Whether to save after this step; the same in all processes."""
        if not self.ranks.joined:
            return self._seconds_to_save() <= 0
        # Asking costs a message, so processes ask about as often as there is something to save.
        self._steps_to_ask -= 1
        if self._steps_to_ask > 0:
            return False
        left = self._seconds_to_save()
        step = (time.monotonic() - self._asked) / self._asked_steps
        wanted = (left if left > 0 else self.options.save_every) / max(step, 1e-6) / 2
        due, self._asked_steps = self.ranks.broadcast_from_rank0(
            (left <= 0, min(max(int(wanted), 1), _MOST_STEPS))
        )
        self._steps_to_ask, self._asked = self._asked_steps, time.monotonic()
        return bool(due)

    def _seconds_to_save(self) -> float:
        wanted = self.options.save_every
        wait = max(wanted, self._saving / _SAVING_FRACTION if wanted else 0.0)
        return wait - (time.monotonic() - self._saved)

    def _save_in_mid_epoch(self, losses: list[Tensor], seconds: float) -> None:
        self._require_finite(losses)
        self._require_finite_weights()
        random = {"cpu": torch.get_rng_state()}
        device = self.data[1].device
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        everyone = self.ranks.gather((torch.stack(losses).cpu(), random))
        self._partial = {
            "losses": torch.stack([one for one, _ in everyone]),
            "seconds": seconds,
            "random": [one for _, one in everyone],
        }
        self.save()

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

    def _require_finite_weights(self) -> None:
        # Looking at the weights also waits for a GPU, so that the epoch's time is its own.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged(f"the weights are no longer finite after epoch {self.epoch + 1}")

    def _diverged(self, what: str) -> DivergedError:
        kept = f". {self.checkpoint} keeps the state after epoch {self.epoch}"
        if self._partial:
            kept += f", step {self._steps_done}"
        return DivergedError(
            f"{what}: lower the learning rate or the weight of the regularizer"
            + (kept if self.checkpoint.exists() else "")
        )
