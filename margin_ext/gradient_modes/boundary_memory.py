"""Where each sample's last search for its boundary has ended, so that the next one starts there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["NOISE_OF_MEMORY", "BoundaryMemory", "Remembering"]

# A remembered start needs less noise than the input.
NOISE_OF_MEMORY = 0.5
_INTEGERS = (torch.int32, torch.int64)


class BoundaryMemory:
    """Offsets from the samples to their last points, by the samples' indices in the data."""

    def __init__(self) -> None:
        self.offsets: Tensor | None = None
        self._indices: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins without: it belongs to another training."""
        return type(self), ()

    @contextmanager
    def samples(self, indices: Tensor) -> Iterator[None]:
        """The batches inside are those of the samples with these indices [B]."""
        before, self._indices = self._indices, indices
        try:
            yield
        finally:
            self._indices = before

    def recall(self, inputs: Tensor) -> Tensor:
        """The offsets [B, ...] of the samples at hand; 0 where nothing is known.

        Raises:
            TypeError: The indices are no tensor of whole numbers.
            ValueError: Nobody said which samples they are, or as many as there are inputs, an index
                is negative, or the memory is one of other data.
        """
        indices = self._indices
        whole_numbers = isinstance(indices, Tensor) and indices.dtype in _INTEGERS
        if indices is not None and not whole_numbers:
            told = f"{indices.dtype}" if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(
                f"indices of samples must be a tensor [B] of int32 or int64, got {told}"
            )
        if indices is None or indices.shape != inputs.shape[:1]:
            told = "none" if indices is None else f"{tuple(indices.shape)}"
            raise ValueError(
                "memory=True needs the indices of the samples in the data, one for each of "
                f"{inputs.shape[0]} inputs: with criterion.margin.samples(indices): "
                "criterion.run(...), or with objective.samples(indices) for AdversarialTraining, "
                f"got {told}"
            )
        if len(indices) and int(indices.min()) < 0:
            raise ValueError(f"indices of samples must be at least 0, got {int(indices.min())}")
        rows = int(indices.max()) + 1 if len(indices) else 0
        if self.offsets is None:
            self.offsets = inputs.new_zeros(rows, *inputs.shape[1:])
        if self.offsets.shape[1:] != inputs.shape[1:]:
            raise ValueError(
                f"the memory is one of samples of shape {list(self.offsets.shape[1:])}, got "
                f"{list(inputs.shape[1:])}: take a new criterion for other data"
            )
        if rows > len(self.offsets):
            more = self.offsets.new_zeros(rows - len(self.offsets), *inputs.shape[1:])
            self.offsets = torch.cat([self.offsets, more])
        self.offsets = self.offsets.to(inputs.device)
        return self.offsets.index_select(0, indices.to(inputs.device)).to(inputs.dtype)

    def keep(self, offsets: Tensor) -> None:
        """Remember the offsets [B, ...] of the samples at hand.

        A search that ended nowhere is not remembered: after a step with an overflow, which a loss
        scaler skips, the sample starts at its input again.
        """
        assert self.offsets is not None
        assert self._indices is not None
        kept = offsets.to(self.offsets.dtype)
        # A finite sum has finite terms.
        whole = kept.flatten(1).sum(1).isfinite().reshape(-1, *[1] * (kept.dim() - 1))
        self.offsets[self._indices.to(self.offsets.device)] = torch.where(whole, kept, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The offsets."""
        return {"offsets": self.offsets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.offsets = state.get("offsets")


class Remembering:
    """What keeps a memory of its searches, if its field ``memory`` says so."""

    memory: bool
    _memory: BoundaryMemory

    def samples(self, indices: Tensor) -> AbstractContextManager[None]:
        """Say that the batches inside hold the samples with these indices in the data [B]."""
        return self._memory.samples(indices)

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: the memory."""
        return self._memory.state_dict() if self.memory else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._memory.load_state_dict(state)
