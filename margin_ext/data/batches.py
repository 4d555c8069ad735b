"""Samples to measure, from whatever the user has: a loader, a data set, two tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from margin_ext.checks import FLOAT_TYPES, shape_text
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["Batch", "Batches", "DataRange"]

DEFAULT_BATCH_SIZE = 256


class Batch(NamedTuple):
    """Some samples in the data's order.

    Attributes:
        first: Index of the first one in the whole data.
        inputs: [B, ...] on the measuring device.
        target: int64 [B].
    """

    first: int
    inputs: Tensor
    target: Tensor


class Batches:
    """Iterates over checked batches of at most ``batch_size`` samples.

    A DataLoader's own batches are split where they are larger, not merged where they are smaller.
    """

    def __init__(
        self,
        data: Any,
        *,
        device: torch.device | None = None,
        batch_size: int | None = None,
        limit: int | None = None,
        data_range: DataRange | None = None,
    ) -> None:
        """Take the samples of ``data``.

        Args:
            data: A pair of tensors (inputs [N, ...], target [N]), a Dataset, or any iterable of
                batches (inputs, target), such as a DataLoader.
            device: Where to put them; None: where they are.
            batch_size: Largest batch; None: the loader's own, 256 for tensors and data sets.
            limit: Only the first ``limit`` samples.
            data_range: Raise where inputs lie outside.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.device = device
        self.batch_size = batch_size
        self.limit = limit
        self.data_range = data_range
        self._source, total = _source(data, batch_size or DEFAULT_BATCH_SIZE)
        self.total = total if limit is None or total is None else min(total, limit)

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for pair in self._source:
            inputs, target = _pair(pair)
            if self.limit is not None:
                left = self.limit - first
                inputs, target = inputs[:left], target[:left]
            _check(inputs, target, first, self.data_range)
            size = self.batch_size or max(inputs.shape[0], 1)
            for x, y in zip(inputs.split(size), target.split(size), strict=True):
                if x.shape[0]:
                    yield Batch(first, x.to(self.device).detach(), y.to(self.device))
                    first += x.shape[0]
            if self.limit is not None and first >= self.limit:
                return
        if first == 0:
            raise ValueError("the data has no samples")


def _source(data: Any, batch_size: int) -> tuple[Iterable[Any], int | None]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
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
    if isinstance(data, Iterable):
        return data, None
    raise TypeError(
        "data must be (inputs, target) tensors, a Dataset, a DataLoader or an iterable of batches "
        f"(inputs, target), got {type(data).__name__}"
    )


class _TensorBatches:
    def __init__(self, inputs: Tensor, target: Tensor, batch_size: int) -> None:
        self.inputs, self.target, self.batch_size = inputs, target, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(
            self.inputs.split(self.batch_size), self.target.split(self.batch_size), strict=True
        )


def _pair(pair: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        size = f" of {len(pair)}" if isinstance(pair, Sized) else ""
        raise TypeError(
            f"each batch must be a pair (inputs, target), got {type(pair).__name__}{size}"
        )
    inputs, target = pair
    if not isinstance(inputs, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            "inputs and target must be tensors, got "
            f"{type(inputs).__name__} and {type(target).__name__}"
        )
    if target.dim() != 1 or inputs.dim() < 2 or inputs.shape[0] != target.shape[0]:
        raise ValueError(
            f"inputs must be [B, ...] and target [B], got {shape_text(inputs)} and "
            f"{shape_text(target)}"
        )
    return inputs, target


def _check(inputs: Tensor, target: Tensor, first: int, data_range: DataRange | None) -> None:
    if inputs.dtype not in FLOAT_TYPES:
        raise TypeError(f"inputs must be of a floating type, got {inputs.dtype}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 class indices, got {target.dtype}")
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
