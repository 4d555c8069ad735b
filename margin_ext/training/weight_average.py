"""An average of the weights over the steps, which is often more robust than the last weights."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["WeightAverage"]


class WeightAverage:
    """An exponential moving average of a model's parameters.

    Averages of weights generalise better than the last ones (Izmailov et al., arXiv 1803.05407),
    and adversarial training gains most (Gowal et al., arXiv 2010.03593). The running statistics of
    BatchNorm are no averages of statistics but are computed for the averaged weights.

    Attributes:
        model: A copy of the model with the averaged weights; it is in eval mode.
        decay: Weight of the average in each step; smaller in the first steps, so that the initial
            weights are soon forgotten.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = WeightAverage(layer, decay=0.5)
        >>> _ = nn.init.constant_(layer.weight, 1.0), nn.init.constant_(average.model.weight, 0.0)
        >>> average.update(layer, step=1000)
        >>> float(average.model.weight)
        0.5
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average toward the model's weights.

        Args:
            model: The model that is trained.
            step: Number of steps before this one.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def recompute_statistics(self, model: nn.Module, inputs: Tensor, batch_size: int) -> None:
        """BatchNorm's running statistics for the averaged weights; other buffers are the model's.

        Args:
            model: The model that is trained.
            inputs: The training inputs [N, ...].
            batch_size: Inputs in each pass.
        """
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        own = {id(buffer) for norm in norms for buffer in norm.buffers()}
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            if id(ours) not in own:
                ours.copy_(theirs)
        norms = [norm for norm in norms if norm.running_mean is not None]
        if norms:
            with _averaging(norms):
                for batch in inputs.split(batch_size):
                    if len(batch) > 1 or len(inputs) == 1:
                        self.model(batch)


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """The layers gather the plain mean of the statistics of all batches."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
