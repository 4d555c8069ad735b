"""How weights are stepped: optimizer, schedule, order of the samples, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from margin_ext.training.checkpoint import told_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["OPTIMIZERS", "PRECISIONS", "SCHEDULES", "Recipe"]

OPTIMIZERS: Final = ("sgd", "adam", "adamw")
SCHEDULES: Final = ("warm_cosine", "cosine", "constant", "step")
PRECISIONS: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_FIRST_FIELDS = ("epochs", "batch_size", "learning_rate", "momentum", "seed")


@dataclass(frozen=True)
class Recipe:
    """How weights are stepped; the same for every objective that is compared.

    Attributes:
        epochs: Passes through the training data.
        batch_size: Of each step, over all processes.
        learning_rate: At its peak.
        momentum: Nesterov's; the first beta of Adam.
        seed: Of the initial weights, the order of the samples, and all else that is random.
        optimizer: "sgd", "adam" or "adamw".
        schedule: "warm_cosine" rises over the first fifth and falls to 0 by a cosine; "cosine"
            only falls; "step" falls to a tenth after a half and again after three quarters of the
            training; "constant".
        weight_decay: Of the optimizer; "adamw" decouples it.
        precision: "float32", or "bfloat16" or "float16" under autocast, the latter with scaled
            gradients.
        compile: "off", or the backend of torch.compile for the model.

    Raises:
        ValueError: There is no such optimizer and so on, or a number is out of its range.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    seed: int = 0
    optimizer: str = "sgd"
    schedule: str = "warm_cosine"
    weight_decay: float = 0.0
    precision: str = "float32"
    compile: str = "off"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", tuple(PRECISIONS)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")

    def settings(self) -> dict[str, Any]:
        """What has to agree for a training to be continued."""
        return told_fields(self, _FIRST_FIELDS)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, momentum=self.momentum, nesterov=self.momentum > 0, **common
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, betas=(self.momentum, 0.999), **common)

    def rate(self, done: float) -> float:
        """Learning rate after a share of the training."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((done >= 0.5) + (done >= 0.75))
        warm = 0.2 if self.schedule == "warm_cosine" else 0.0
        if done < warm:
            return self.learning_rate * (0.05 + 0.95 * done / warm)
        return self.learning_rate * (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2

    def order(self, count: int, epoch: int) -> Tensor:
        """The samples in the order of this epoch: a function of seed and epoch alone.

        So a continued training needs no random state from the one that was killed.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=generator)

    def epoch_seed(self, epoch: int, rank: int = 0) -> int:
        """Seed of everything else that is random in an epoch, such as dropout; one a process."""
        return (self.seed * 1_000_003 + epoch) * 65_537 + rank + 1
