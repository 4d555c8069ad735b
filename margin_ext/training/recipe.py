"""How weights are stepped: optimizer, schedule, order of the samples, precision."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from margin_ext.training.words import check_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How weights are stepped, the same for every objective that is compared.

    Attributes:
        epochs: Passes through the training data.
        batch_size: Samples in each step, over all processes.
        learning_rate: Its highest value (default on the command line: 0.05 for sgd, 0.001 for adam
            and adamw).
        momentum: The momentum of sgd (Nesterov's), or the first beta of adam and adamw.
        seed: Decides the initial weights, the order of the samples, and all else that is random.
        optimizer: The optimizer.
        schedule: "warm_cosine" rises over the first fifth of the training and falls to 0 by a
            cosine; "cosine" only falls; "step" falls to a tenth after a half of the training and
            again after three quarters.
        weight_decay: Weight decay of the optimizer; "adamw" decouples it.
        precision: "float32", or one of the others under autocast; "float16" with scaled gradients.
        weight_average: Decay of an exponential moving average of the weights, such as 0.99, which
            then is the trained model; 0 for none. BatchNorm's statistics are computed for it.
        compile: "off", or a backend of torch.compile for the model, such as "inductor".

    Raises:
        ValueError: There is no such optimizer and so on, or a number is out of its range.

    >>> recipe = Recipe(epochs=10, learning_rate=0.1, schedule="cosine")
    >>> recipe.rate(0.0), round(recipe.rate(0.5), 6), recipe.rate(1.0)
    (0.1, 0.05, 0.0)
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    seed: int = 0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["warm_cosine", "cosine", "constant", "step"] = "warm_cosine"
    weight_decay: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    weight_average: float = 0.0
    compile: str = "off"

    def __post_init__(self) -> None:
        check_words(self)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_average < 1:
            raise ValueError(f"weight_average must lie in [0, 1), got {self.weight_average}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")

    def settings(self) -> dict[str, Any]:
        """What must agree for a training to be continued. It may become longer."""
        return {name: value for name, value in asdict(self).items() if name != "epochs"}

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that autocast computes in; None for no autocast."""
        import torch

        if self.precision == "float32":
            return None
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float16

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        import torch

        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, momentum=self.momentum, nesterov=self.momentum > 0, **common
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, betas=(self.momentum, 0.999), **common)

    def rate(self, done: float) -> float:
        """Learning rate after a fraction of the training."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((done >= 0.5) + (done >= 0.75))
        warm = 0.2 if self.schedule == "warm_cosine" else 0.0
        if done < warm:
            return self.learning_rate * (0.05 + 0.95 * done / warm)
        return self.learning_rate * (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2

    def order(self, count: int, epoch: int) -> Tensor:
        """The samples in the order of this epoch, which depends on seed and epoch alone.

        So a continued training needs no random state from the one that was killed.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=generator)

    def epoch_seed(self, epoch: int, rank: int = 0) -> int:
        """Seed of everything else that is random in an epoch, such as dropout; one a process."""
        return (self.seed * 1_000_003 + epoch) * 65_537 + rank + 1
