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

__all__ = ["measuring", "usable_device"]


@contextmanager
def measuring(
    model: Model,
    batches: Batches,
    *,
    device: torch.device | str | None = None,
    title: str = "margins",
    progress: bool | None = None,
) -> Iterator[Iterator[Batch]]:
    """Batches of the data, while the model is in evaluation mode.

    The first batch is used to look at the model (:func:`require_measurable`). Model, random states
    and the generators of the loader are restored at the end. Where ranks share the data, these are
    this rank's batches, and only rank 0 shows the bar.

    Args:
        model: The function to measure.
        batches: The data.
        device: Where to measure; None: the model's device. The model is not moved.
        title: Of the progress bar.
        progress: Show the bar; None: on a terminal.
    """
    batches.device = model_device(model) if device is None else usable_device(device)
    batches.dtype = model_dtype(model)
    bar = progress_bar(batches.total, title, progress if batches.ranks.is_main else False)

    def checked() -> Iterator[Batch]:
        looked = False
        for batch in batches:
            if not looked:
                require_measurable(model, batch.inputs)
                looked = True
            yield batch
            bar.update(batch.target.shape[0])

    try:
        with evaluation_mode(model), kept_generators(batches.data):
            yield checked()
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
