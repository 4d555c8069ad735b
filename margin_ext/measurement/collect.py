"""Every sample's results, from one process or from several that share the data."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from margin_ext.measurement.measuring import measuring
from margin_ext.measurement.resume import FINGERPRINTED, PartialResults, rank_file
from margin_ext.models.model_digest import model_digest
from margin_ext.modules_behind import modules_behind
from margin_ext.output.exclusive import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from margin_ext.data.batches import Batch, Batches
    from margin_ext.measurement.resume import Columns
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.together import Together

__all__ = ["Collected", "Measurement", "Place", "collect"]


class Measurement(Protocol):
    """What is measured of every sample."""

    @property
    def model(self) -> Model:
        """The function that is measured."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that the numbers depend on but the model and the data, as plain values."""
        ...

    def begin(self) -> None:
        """Look at the model, which is now in evaluation mode."""
        ...

    def fingerprint(self, batch: Batch) -> Columns:
        """What tells this model from others on a few samples."""
        ...

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in parts that are measured one after the other."""
        ...

    def columns(self, batch: Batch, progress: Callable[[float], None]) -> Columns:
        """Every value of the batch's samples [B, ...], by name.

        ``progress`` may be told what part of the batch is done, from 0 to 1.
        """
        ...

    def seen(self, batch: Batch, columns: Columns) -> None:
        """Look at a batch and its values, whether they are new or known from an earlier run."""
        ...


@dataclass(frozen=True)
class Place:
    """Where measuring takes place and what it leaves there.

    Attributes:
        device: None: the model's.
        title: Title of the progress bar.
        progress: Show it; None: on a terminal.
        resume: The file in which results are kept as they come.
        save_every: Seconds between two savings.
    """

    device: torch.device | str | None = None
    title: str = "margins"
    progress: bool | None = None
    resume: Path | None = None
    save_every: float = 10.0


@dataclass(frozen=True)
class Collected:
    """Results of all samples, the same on every rank.

    Attributes:
        columns: Each [N, ...], in the data's order, and "index" with the samples' numbers.
        seconds: The longest time of a rank, earlier runs included.
    """

    columns: Columns
    seconds: float

    @property
    def indices(self) -> NDArray[np.int64]:
        """The samples' numbers in the data [N]."""
        return self.columns["index"]


def collect(
    measurement: Measurement, batches: Batches, place: Place, meeting: Together
) -> Collected:
    """Measure every sample, each on one rank, and bring the results to all of them.

    Args:
        measurement: What is measured.
        batches: The data, with the ranks that share them.
        place: The device, the progress bar and the file to resume from.
        meeting: The ranks.

    Raises:
        RankFailedError: Another rank failed.
        ValueError: Ranks have other models, settings or data; there are no samples; the file to
            resume from belongs to another run.
    """
    ranks, path = meeting.ranks, place.resume
    identity: Mapping[str, Any] = {}
    if path is not None or ranks.joined:
        learned = model_digest(*modules_behind(measurement.model))
        identity = {**measurement.settings(), "model": learned}
    _require_same(meeting, {**identity, "order of the data": batches.order})
    with ExitStack() as held:
        if path is not None:
            held.enter_context(exclusive(rank_file(path, ranks.rank)))
        partial = PartialResults(path, identity, place.save_every, ranks)
        # No rank writes before all of them have read.
        meeting.exchange()
        try:
            samples = held.enter_context(
                measuring(
                    measurement.model, batches,
                    device=place.device, title=place.title, progress=place.progress,
                )
            )  # fmt: skip
            measurement.begin()
            in_order = iter(samples)
            first = next(in_order, None)
            if path is not None and first is not None and first.first == 0:
                looked_at = first.part(0, FINGERPRINTED)
                partial.require_same_model(looked_at, measurement.fingerprint(looked_at))
            # No rank goes on before rank 0 has checked that the file belongs to this model.
            meeting.exchange()
            for whole in chain([] if first is None else [first], in_order):
                meeting.check()
                _measure_batch(measurement, whole, partial, samples.done)
            passed = partial.passed()
            found = meeting.exchange((*passed, partial.elapsed(), batches.order))
        finally:
            partial.save()
    if len({order for *_, order in found}) > 1:
        raise ValueError(
            "the ranks read other data, or the same in another order: all must be given the same "
            "data in the same order, or each its own as PerRank(data) from margin_ext.data"
        )
    shares = [columns for columns, *_ in found if columns]
    _require_complete(partial, sum(known for _, known, *_ in found), shares)
    columns = _in_order(shares)
    return Collected(columns, max(seconds for *_, seconds, _ in found))


def _measure_batch(
    measurement: Measurement,
    whole: Batch,
    partial: PartialResults,
    done: Callable[[float], None],
) -> None:
    """Measure what is not known; ``done`` is told how many samples of the batch are."""
    count = 0
    for piece, known in partial.pieces(whole):
        if known is not None:
            partial.take(known)
            measurement.seen(piece, known)
            count += piece.target.shape[0]
            continue
        for part in measurement.parts(piece):
            size = part.target.shape[0]
            columns = measurement.columns(part, _within(done, count, size))
            partial.append(part, columns)
            measurement.seen(part, columns)
            count += size


def _within(done: Callable[[float], None], before: int, size: int) -> Callable[[float], None]:
    """From the progress within a part to the samples of the batch that are done."""
    return lambda share: done(before + size * share)


def _require_same(meeting: Together, own: Mapping[str, Any]) -> None:
    """Raise on all ranks where they were not asked for the same."""
    everything = meeting.exchange(dict(own))
    first = everything[0]
    for rank, other in enumerate(everything):
        differing = sorted(k for k in {*first, *other} if first.get(k) != other.get(k))
        if differing:
            hint = ""
            if differing == ["model"]:
                hint = (
                    "; give all the same parameters and buffers, such as by "
                    "torch.distributed.broadcast (under DistributedDataParallel each rank's "
                    "BatchNorm has statistics of its own after a step)"
                )
            raise ValueError(
                f"ranks 0 and {rank} were not asked for the same: the {', the '.join(differing)} "
                f"differ{'s' * (len(differing) == 1)}{hint}"
            )


def _require_complete(partial: PartialResults, met: int, shares: list[Columns]) -> None:
    """Raise where there are no samples, or the file holds more than the data."""
    seen = sum(len(columns["index"]) for columns in shares)
    if not seen:
        raise ValueError("the data has no samples")
    if met < partial.count:
        raise ValueError(
            f"{partial.path} holds results of {partial.count} samples, the data has {seen}"
            if partial.count > seen
            else f"{partial.path} holds results of samples that the data does not have"
        )


def _in_order(parts: list[Columns]) -> Columns:
    """The columns of all ranks in the data's order."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["index"], kind="stable")
    return {name: column[order] for name, column in joined.items() if name != "hash"}
