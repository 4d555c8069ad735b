"""Samples to measure, from whatever the user has: a loader, a data set, two arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from margin_ext.checks import FLOAT_TYPES, shape_text
from margin_ext.plain_numbers import whole_number
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["Batch", "BatchFunction", "Batches"]

DEFAULT_BATCH_SIZE = 256

# Takes inputs and target from whatever a loader yields.
BatchFunction = Callable[[Any], tuple[Any, Any]]

# Names under which libraries keep inputs and labels in a batch that is a dictionary.
_INPUTS = ("inputs", "input", "image", "images", "pixel_values", "img", "x", "data")
_TARGET = ("target", "targets", "label", "labels", "y", "class")


class Batch(NamedTuple):
    """Some samples in the data's order.

    Attributes:
        first: Index of the first one in the whole data.
        inputs: [B, ...] on the measuring device. It may be the caller's own memory.
        target: int64 [B].
    """

    first: int
    inputs: Tensor
    target: Tensor

    def part(self, start: int, size: int) -> Batch:
        """At most ``size`` samples from ``start`` on, counted in this batch."""
        end = start + size
        return Batch(self.first + start, self.inputs[start:end], self.target[start:end])


class Batches:
    """Iterates over checked batches of at most ``batch_size`` samples.

    A DataLoader's own batches are split where they are larger, not merged where they are smaller.

    Example:
        >>> batches = Batches((torch.rand(5, 2), torch.tensor([0, 1, 0, 1, 0])), batch_size=3)
        >>> [batch.inputs.shape for batch in batches]
        [torch.Size([3, 2]), torch.Size([2, 2])]
    """

    def __init__(
        self,
        data: Any,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        limit: int | None = None,
        data_range: DataRange | None = None,
        batch_fn: BatchFunction | None = None,
    ) -> None:
        """Take the samples of ``data``.

        Args:
            data: A pair (inputs [N, ...], target [N]) of tensors, numpy arrays or pandas frames,
                a Dataset, or any iterable of batches, such as a DataLoader. A batch is a pair
                (inputs, target) or a dictionary with fields of such names.
            device: Where to put them; None: where they are.
            dtype: Type of the model's parameters: inputs in float64 become float32 for a float32
                model, and narrower inputs become as wide as the model. None: as they are.
            batch_size: Largest batch; None: the loader's own, 256 for arrays and data sets.
            limit: Only the first ``limit`` samples.
            data_range: Raise where inputs lie outside.
            batch_fn: Takes (inputs, target) from a batch of another form, such as
                ``lambda batch: (batch[0], batch[2])``.
        """
        self.data = data
        self.device = device
        self.dtype = dtype
        self.batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
        self.limit = None if limit is None else whole_number("limit", limit)
        self.data_range = data_range
        self.batch_fn = batch_fn
        self._source, total = _source(data, self.batch_size or DEFAULT_BATCH_SIZE, batch_fn)
        self.total = total if self.limit is None or total is None else min(total, self.limit)

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for one in self._source:
            inputs, target = _pair(one if self.batch_fn is None else self.batch_fn(one))
            if self.limit is not None:
                left = self.limit - first
                inputs, target = inputs[:left], target[:left]
            _check(inputs, first, self.data_range)
            target = _labels(target, first)
            size = self.batch_size or max(inputs.shape[0], 1)
            for x, y in zip(inputs.split(size), target.split(size), strict=True):
                if x.shape[0]:
                    dtype = _wanted(x.dtype, self.dtype)
                    yield Batch(first, self._placed(x, dtype), self._placed(y, torch.int64))
                    first += x.shape[0]
            if self.limit is not None and first >= self.limit:
                return
        if first == 0:
            raise ValueError("the data has no samples")

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # Inference tensors cannot require gradients; their copies can.
        return tensor.detach().to(self.device, dtype, copy=tensor.is_inference())


def _wanted(given: torch.dtype, model: torch.dtype | None) -> torch.dtype:
    if model is None or (given == torch.float64 and model in (torch.float16, torch.bfloat16)):
        return given
    return model if given == torch.float64 else torch.promote_types(given, model)


def _source(
    data: Any, batch_size: int, batch_fn: BatchFunction | None
) -> tuple[Iterable[Any], int | None]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and _is_array(data[0]):
        inputs, target = _pair(data)
        return _TensorBatches(inputs, target, batch_size), inputs.shape[0]
    if isinstance(data, DataLoader):
        dataset = data.dataset
        known = isinstance(dataset, Sized) and not data.drop_last and data.sampler is not None
        return data, len(dataset) if known and isinstance(dataset, Sized) else None
    if isinstance(data, Dataset):
        loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size)
        sized = isinstance(data, Sized) and not isinstance(data, IterableDataset)
        return loader, len(data) if sized and isinstance(data, Sized) else None
    if isinstance(data, Mapping) or _is_array(data):
        kind = type(data).__name__
        raise TypeError(
            f"data must hold inputs and target, such as (inputs, target), got one {kind}"
        )
    if isinstance(data, Iterable) and not isinstance(data, str):
        return data, None
    raise TypeError(
        "data must be (inputs, target) arrays, a Dataset, a DataLoader or an iterable of batches "
        f"(inputs, target), got {type(data).__name__}"
    )


class _TensorBatches:
    def __init__(self, inputs: Tensor, target: Tensor, batch_size: int) -> None:
        self.inputs, self.target, self.batch_size = inputs, target, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(
            self.inputs.split(self.batch_size), self.target.split(self.batch_size), strict=True
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
    bounds = ThreatModel(data_range=data_range).bounds(inputs)
    if bounds is not None:
        low, high = bounds
        # A rounding of the loader's arithmetic is no fault of the data.
        slack = 1e-5 * (high - low)
        if bool(((inputs < low - slack) | (inputs > high + slack)).any()):
            raise ValueError(
                f"inputs from sample {first} on lie in [{float(inputs.min()):.6g}, "
                f"{float(inputs.max()):.6g}], outside the stated data range {data_range}: "
                "are they normalised? Give the range in the units that the model gets"
            )
