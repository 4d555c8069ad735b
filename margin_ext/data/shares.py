"""Which batches of a source belong to which rank."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from margin_ext.random_states import keep_random_states, kept_generators

if TYPE_CHECKING:
    from margin_ext.ranks import Ranks

__all__ = ["Item", "Share", "StreamShare", "TensorShare", "share_of", "target_digest"]

# What a loader of other batches takes over; the second only where it has workers.
_LOADER_SETTINGS = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "generator")
_WORKER_SETTINGS = ("timeout", "prefetch_factor", "multiprocessing_context")


class Item(NamedTuple):
    """What a source yields.

    Attributes:
        batch: As the source has it.
        first: Number of its first sample; None: it follows the one before.
        size: Number of its samples, where that is known before it is read.
        own: Whether this rank measures it.
    """

    batch: Any
    first: int | None = None
    size: int | None = None
    own: bool = True


class Share:
    """The batches of one rank; it takes every n-th of the source's batches, each of them whole.

    So every batch is computed as in one process, and results agree bit for bit.

    Attributes:
        total: Number of this rank's samples; None where that is unknown.
        order: A digest of the data and their order, as far as they are known now. It is equal on
            all ranks that read the same data.
    """

    total: int | None = None
    order: str = ""

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError


class TensorShare(Share):
    """Batches of tensors in memory."""

    def __init__(self, inputs: Tensor, target: Tensor, batch_size: int, ranks: Ranks) -> None:
        self._parts = inputs.split(batch_size), target.split(batch_size)
        self._size, self._ranks = batch_size, ranks
        own = self._parts[1][ranks.rank :: ranks.size]
        self.total = sum(part.shape[0] for part in own)
        if ranks.size > 1:
            self.order = target_digest(f"{tuple(inputs.shape)} in {batch_size}", target)

    def __iter__(self) -> Iterator[Item]:
        whole = enumerate(zip(*self._parts, strict=True))
        for number, pair in itertools.islice(whole, self._ranks.rank, None, self._ranks.size):
            yield Item(pair, number * self._size)


class LoaderShare(Share):
    """A loader of a data set that can be asked for any sample: each rank loads only its own."""

    def __init__(self, loader: DataLoader[Any], ranks: Ranks) -> None:
        keys = _keys(loader)
        counts = [len(key) for key in keys]
        firsts = [0, *itertools.accumulate(counts)][:-1]
        own = slice(ranks.rank, None, ranks.size)
        self._firsts, self._counts = firsts[own], counts[own]
        self._loader = _loader_of(loader, keys[own])
        self.order = hashlib.blake2b(repr(keys).encode(), digest_size=16).hexdigest()
        self.total = sum(self._counts)

    def __iter__(self) -> Iterator[Item]:
        for batch, first, count in zip(self._loader, self._firsts, self._counts, strict=True):
            yield Item(batch, first, count)


class StreamShare(Share):
    """A stream of batches: each rank reads all of them and marks its own."""

    def __init__(self, source: Iterable[Any], ranks: Ranks) -> None:
        self._source, self._ranks = source, ranks

    def __iter__(self) -> Iterator[Item]:
        for number, batch in enumerate(self._source):
            yield Item(batch, own=number % self._ranks.size == self._ranks.rank)


def share_of(source: Iterable[Any], ranks: Ranks) -> Share:
    """This rank's share of a loader or a stream.

    Raises:
        ValueError: The loader gives each rank other samples.
    """
    if ranks.size == 1 or not isinstance(source, DataLoader):
        return StreamShare(source, ranks)
    sampler = getattr(source.batch_sampler, "sampler", source.sampler)
    if isinstance(sampler, DistributedSampler) or isinstance(source.sampler, DistributedSampler):
        raise ValueError(  # noqa: TRY004
            "the loader's DistributedSampler gives each rank other samples: pass a loader without "
            "it, whose batches the ranks then share, or PerRank(loader) from margin_ext.data"
        )
    # A subclass of DataLoader may do anything.
    plain = type(source) is DataLoader and not isinstance(source.dataset, IterableDataset)
    if not plain or source.batch_sampler is None:
        return StreamShare(source, ranks)
    return LoaderShare(source, ranks)


def _keys(loader: DataLoader[Any]) -> list[Any]:
    """The batches that the loader would now yield, as keys of its data set."""
    restore = keep_random_states()
    try:
        with kept_generators(loader):
            # A loader draws a seed for its workers before its sampler draws.
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
            return list(loader.batch_sampler or ())
    finally:
        restore()


def _loader_of(loader: DataLoader[Any], keys: Sequence[Any]) -> DataLoader[Any]:
    """The loader for batches of these keys only."""
    names = (*_LOADER_SETTINGS, *(_WORKER_SETTINGS if loader.num_workers else ()))
    settings: dict[str, Any] = {name: getattr(loader, name) for name in names}
    return DataLoader(loader.dataset, batch_sampler=keys, **settings)


def target_digest(before: str, target: Tensor) -> str:
    """The digest `before` of what was read so far, continued with the next labels."""
    digest = hashlib.blake2b(before.encode(), digest_size=16)
    digest.update(target.detach().to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
