"""The frame around every measurement: what is read, in which state, and what is left as it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from margin_ext.models.evaluation_mode import evaluation_mode, model_device, model_dtype
from margin_ext.models.model_probe import require_measurable
from margin_ext.output.progress_bar import progress_bar
from margin_ext.random_states import kept_generators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin_ext.data.batches import Batch, Batches
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.output.progress_bar import Progress

__all__ = ["Samples", "measuring", "usable_device"]

# Progress is counted in these parts of a sample, which add up without rounding.
_PARTS = 8


class Samples:
    """The batches to measure, with the progress that is shown."""

    def __init__(self, model: Model, batches: Batches, bar: Progress) -> None:
        self._model, self._batches, self._bar = model, batches, bar
        self._shown = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order. The first one is used to look at the model."""
        looked = False
        for batch in self._batches:
            if not looked:
                require_measurable(self._model, batch.inputs)
                looked = True
            self._shown = 0.0
            yield batch
            self.done(batch.target.shape[0])

    def done(self, samples: float) -> None:
        """Show that so many samples of the current batch are done; parts of one count."""
        reached = int(samples * _PARTS) / _PARTS
        if reached > self._shown:
            self._bar.update(reached - self._shown)
            self._shown = reached


@contextmanager
def measuring(
    model: Model,
    batches: Batches,
    *,
    device: torch.device | str | None = None,
    title: str = "margins",
    progress: bool | None = None,
) -> Iterator[Samples]:
    """Batches of the data, while the model is in evaluation mode.

    Model, random states and the generators of the loader are restored at the end. Where ranks share
    the data, these are this rank's batches, and only rank 0 shows the bar.

    Args:
        model: The function to measure.
        batches: The data.
        device: Where to measure; None: the model's device. The model is not moved.
        title: Title of the progress bar.
        progress: Show the bar; None: on a terminal.
    """
    batches.device = model_device(model) if device is None else usable_device(device)
    batches.dtype = model_dtype(model)
    bar = progress_bar(batches.total, title, progress if batches.ranks.is_main else False)
    try:
        with evaluation_mode(model), kept_generators(batches.data):
            yield Samples(model, batches, bar)
    finally:
        bar.close()


def usable_device(device: Any) -> torch.device:
    """A device that exists here.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    try:
        place = torch.device(device)
        torch.empty(1, device=place).tolist()
    except (RuntimeError, AssertionError, ImportError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device!s} cannot be used here: {reason}") from error
    return place
