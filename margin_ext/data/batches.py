"""Samples to measure, from whatever the user has: a loader, a data set, two arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from margin_ext.checks import FLOAT_TYPES, shape_text
from margin_ext.data.per_rank import PerRank
from margin_ext.data.reading import Reading
from margin_ext.data.shares import (
    Item,
    Share,
    StreamShare,
    TensorShare,
    share_of,
    target_digest,
)
from margin_ext.ranks import ALONE, Ranks
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["Batch", "Batches"]

DEFAULT_BATCH_SIZE = 256

# Names under which libraries keep inputs and labels in a batch that is a dictionary.
_INPUTS = ("inputs", "input", "image", "images", "pixel_values", "img", "x", "data")
_TARGET = ("target", "targets", "label", "labels", "y", "class")


class Batch(NamedTuple):
    """Some samples in the data's order.

    Attributes:
        first: Index of the first one in the whole data.
        inputs: [B, ...] on the measuring device. It may be the caller's own memory.
        target: int64 [B].
        step: From the index of one sample to the next one's.
    """

    first: int
    inputs: Tensor
    target: Tensor
    step: int = 1

    @property
    def indices(self) -> range:
        """Of the samples in the whole data."""
        return range(self.first, self.first + self.step * self.target.shape[0], self.step)

    def part(self, start: int, size: int) -> Batch:
        """At most ``size`` samples from ``start`` on, counted in this batch."""
        end = start + size
        first = self.first + self.step * start
        return Batch(first, self.inputs[start:end], self.target[start:end], self.step)


class Batches:
    """Iterates over checked batches of at most ``batch_size`` samples.

    A DataLoader's own batches are split where they are larger, not merged where they are smaller.

    Example:
        >>> batches = Batches((torch.rand(5, 2), torch.tensor([0, 1, 0, 1, 0])), Reading(3))
        >>> [batch.inputs.shape for batch in batches]
        [torch.Size([3, 2]), torch.Size([2, 2])]
    """

    def __init__(
        self,
        data: Any,
        reading: Reading | None = None,
        ranks: Ranks = ALONE,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the samples of ``data``.

        Args:
            data: A pair (inputs [N, ...], target [N]) of tensors, numpy arrays or pandas frames,
                a Dataset, or any iterable of batches, such as a DataLoader. A batch is a pair
                (inputs, target) or a dictionary with fields of such names.
            reading: How; None: all of them, in the source's own batches.
            ranks: The processes that share the data: each of them takes every n-th of the source's
                batches, or all that it has where data is a `PerRank`.
            device: Where to put them; None: where they are.
            dtype: Type of the model's parameters: inputs in float64 become float32 for a float32
                model, and narrower inputs become as wide as the model. None: as they are.
        """
        self.data = data
        self.device = device
        self.dtype = dtype
        self.reading = Reading() if reading is None else reading
        self.ranks = ranks
        self._step, self._start = 1, 0
        if isinstance(data, PerRank):
            self._step, self._start = ranks.size, ranks.rank
            data, ranks = data.data, ALONE
        self._source, total = _source(data, self.reading.batch_size or DEFAULT_BATCH_SIZE, ranks)
        self._seen = self._source.order
        limit = self.reading.limit
        self.total = total if limit is None or total is None else min(total, limit)

    @property
    def order(self) -> str:
        """Recognises the data and their order as far as they were read.

        Ranks that share data have the same at the beginning, and again at the end.
        """
        return "" if self._step > 1 else self._seen

    def __iter__(self) -> Iterator[Batch]:
        self._seen = self._source.order
        first = self._start
        limit, batch_fn = self.reading.limit, self.reading.batch_fn
        for item in self._source:
            one = item.batch
            inputs, target = _pair(one if batch_fn is None else batch_fn(one))
            first = first if item.first is None else item.first
            _require_promised(item, target)
            if limit is not None:
                left = max(0, math.ceil((limit - first) / self._step))
                inputs, target = inputs[:left], target[:left]
            if item.first is None and self.ranks.size > 1:
                self._seen = target_digest(self._seen, target)
            if item.own:
                yield from self._checked(first, inputs, target)
            first += self._step * target.shape[0]
            if limit is not None and first >= limit:
                return
        if first == 0 and self.ranks.size == 1:
            raise ValueError("the data has no samples")

    def _checked(self, first: int, inputs: Tensor, target: Tensor) -> Iterator[Batch]:
        """One batch of the source, in parts of at most ``batch_size``."""
        _check(inputs, first, self.reading.data_range)
        target = _labels(target, first)
        size = self.reading.batch_size or max(inputs.shape[0], 1)
        for x, y in zip(inputs.split(size), target.split(size), strict=True):
            if x.shape[0]:
                dtype = _wanted(x.dtype, self.dtype)
                placed = self._placed(x, dtype), self._placed(y, torch.int64)
                yield Batch(first, *placed, self._step)
                first += self._step * x.shape[0]

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # Inference tensors cannot require gradients; their copies can.
        return tensor.detach().to(self.device, dtype, copy=tensor.is_inference())


def _wanted(given: torch.dtype, model: torch.dtype | None) -> torch.dtype:
    if model is None or (given == torch.float64 and model in (torch.float16, torch.bfloat16)):
        return given
    return model if given == torch.float64 else torch.promote_types(given, model)


def _require_promised(item: Item, target: Tensor) -> None:
    if item.size is not None and item.size != target.shape[0]:
        raise ValueError(
            f"the loader's sampler names {item.size} samples for the batch that begins at sample "
            f"{item.first}, and the batch has {target.shape[0]}: so ranks cannot share the "
            "loader; pass a generator of its batches, which each rank reads whole: "
            "(batch for batch in loader)"
        )


def _source(data: Any, batch_size: int, ranks: Ranks) -> tuple[Share, int | None]:
    """Where batches come from, and the number of this rank's samples where it is known."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and _is_array(data[0]):
        share: Share = TensorShare(*_pair(data), batch_size, ranks)
        return share, share.total
    if isinstance(data, DataLoader):
        dataset = data.dataset
        share = share_of(data, ranks)
        known = isinstance(dataset, Sized) and not data.drop_last and data.sampler is not None
        whole = len(dataset) if known and isinstance(dataset, Sized) else None
        return share, whole if ranks.size == 1 else share.total
    if isinstance(data, Dataset):
        loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size)
        share = share_of(loader, ranks)
        sized = isinstance(data, Sized) and not isinstance(data, IterableDataset)
        whole = len(data) if sized and isinstance(data, Sized) else None
        return share, whole if ranks.size == 1 else share.total
    if isinstance(data, Mapping) or _is_array(data):
        kind = type(data).__name__
        raise TypeError(
            f"data must hold inputs and target, such as (inputs, target), got one {kind}"
        )
    if isinstance(data, Iterable) and not isinstance(data, str):
        return StreamShare(data, ranks), None
    raise TypeError(
        "data must be (inputs, target) arrays, a Dataset, a DataLoader or an iterable of batches "
        f"(inputs, target), got {type(data).__name__}"
    )


def _is_array(thing: Any) -> bool:
    return isinstance(thing, Tensor) or hasattr(thing, "__array__") or hasattr(thing, "to_numpy")


def _as_tensor(name: str, thing: Any) -> Tensor:
    if isinstance(thing, Tensor):
        return thing
    if hasattr(thing, "to_numpy"):  # pandas
        thing = thing.to_numpy()
    if not hasattr(thing, "__array__"):
        kind = type(thing).__name__
        hint = ", as in a single sample" if isinstance(thing, (int, float)) else ""
        raise TypeError(f"the {name} of a batch must be a tensor or an array, got {kind}{hint}")
    try:
        return torch.as_tensor(thing, device="cpu")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot become a tensor: {error}") from error


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        batch = _fields(batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, Sized) else ""
        raise TypeError(
            f"each batch must be a pair (inputs, target), got {type(batch).__name__}{size}: pass "
            "batch_fn=, such as lambda batch: (batch[0], batch[1])"
        )
    inputs, target = _as_tensor("inputs", batch[0]), _as_tensor("target", batch[1])
    if inputs.layout != torch.strided or inputs.is_nested:
        raise TypeError("inputs must be dense tensors, got a sparse or nested one")
    if target.dim() == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.dim() != 1 or inputs.dim() < 2 or inputs.shape[0] != target.shape[0]:
        raise ValueError(
            f"inputs must be [B, ...] and target [B], got {shape_text(inputs)} and "
            f"{shape_text(target)}"
        )
    return inputs, target


def _fields(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    found = []
    for what, names in (("inputs", _INPUTS), ("target", _TARGET)):
        known = [name for name in names if name in batch]
        if len(known) != 1:
            held = ", ".join(map(str, batch))
            raise TypeError(
                f"it is not clear which field of a batch holds the {what} (it has {held}): pass "
                'batch_fn=, such as lambda batch: (batch["image"], batch["label"])'
            )
        found.append(batch[known[0]])
    return found[0], found[1]


def _labels(target: Tensor, first: int) -> Tensor:
    if target.is_complex():
        raise TypeError(f"target must be class indices, got {target.dtype}")
    if target.is_floating_point():
        whole = target.isfinite() & (target == target.round())
        if not bool(whole.all()):
            index = int((~whole).nonzero()[0, 0])
            raise ValueError(
                f"target must be whole numbers, class indices, got {float(target[index]):g} at "
                f"sample {first + index}"
            )
    return target.to(torch.int64)


def _check(inputs: Tensor, first: int, data_range: DataRange | None) -> None:
    if inputs.dtype not in FLOAT_TYPES:
        hint = "; for bytes, inputs.float() / 255" if inputs.dtype == torch.uint8 else ""
        raise TypeError(f"inputs must be of a floating type, got {inputs.dtype}{hint}")
    if not inputs.numel():
        return
    if not bool(torch.isfinite(inputs).all()):
        raise ValueError(f"the inputs from sample {first} on hold NaN or infinity")
    ThreatModel(data_range=data_range).require_inside(inputs, f"inputs from sample {first} on")
