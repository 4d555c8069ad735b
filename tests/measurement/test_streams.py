"""Data that do not fit into memory, or whose length nobody knows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD
from margin_ext.bounds import Sampled
from margin_ext.data import PerRank
from margin_ext.measurement import read_partial_results
from measurement.networks import linear_model

SIZES = (5, 1, 9, 4)


def samples(count: int = sum(SIZES)) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(0)).double()
    return x, torch.arange(count) % 5


class Batches(IterableDataset):  # type: ignore[type-arg]
    """Whole batches, as loaders of shards have them; no length."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        x, y = samples()
        for inputs, target in zip(x.split(SIZES), y.split(SIZES), strict=True):
            yield {"image": inputs, "label": target}


class Samples(IterableDataset):  # type: ignore[type-arg]
    """One sample after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*samples(), strict=True)


def generator() -> Iterator[tuple[Tensor, Tensor]]:
    x, y = samples()
    yield from zip(x.split(SIZES), y.split(SIZES), strict=True)


@pytest.mark.parametrize(
    "stream",
    [
        lambda: DataLoader(Batches(), batch_size=None),
        lambda: DataLoader(Samples(), batch_size=7),
        Samples,
        generator,
        lambda: map(tuple, generator()),
        lambda: PerRank(generator()),
    ],
)
def test_a_stream_gives_the_report_of_its_samples_in_memory(stream: Any) -> None:
    bounds = [Sampled(points=5)]
    whole = measure(linear_model(), samples(), bounds=bounds)
    found = measure(linear_model(), stream(), bounds=bounds)
    for name, column in whole.columns().items():
        torch.testing.assert_close(torch.tensor(found.columns()[name]), torch.tensor(column))
    assert (
        robust_accuracy(linear_model(), stream(), 0.1).curve()
        == robust_accuracy(linear_model(), samples(), 0.1).curve()
    )


@pytest.mark.parametrize("attacked", [False, True])
def test_memory_does_not_grow_with_the_batches(attacked: bool) -> None:
    """No batch is held when the one after the next is read."""
    earlier: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            alive.append(sum(ref() is not None for ref in earlier))
            x = torch.randn(8, 12).double()
            earlier.append(weakref.ref(x.untyped_storage()))  # type: ignore[arg-type]
            yield x, model(x).argmax(dim=1)

    model = linear_model()
    if attacked:
        # The diagnosis keeps some samples, without their batches.
        robust_accuracy(model, stream(), 0.1, attacks=[PGD(steps=2)])
    else:
        measure(model, stream())
    assert max(alive) <= 2


def test_results_are_written_as_they_come_and_can_be_read_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    seen: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(generator()):
            if number:
                kept = read_partial_results(file)
                seen.append(len(kept["index"]))
                assert kept["margin_l2"].shape == kept["index"].shape
            yield batch

    report = measure(linear_model(), stream(), resume=file, save_every=0.0)
    assert seen == [5, 6, 15]
    kept = read_partial_results(file)
    assert (kept["margin_l2"] == report.margin).all()
    assert "hash" not in kept


def test_saving_takes_a_small_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of long streams are large, and each saving writes the whole file."""
    from margin_ext.measurement import resume

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    writes: list[float] = []

    def slow_write(path: Path, write: Any) -> None:
        writes.append(Clock.now)
        Clock.now += 5.0

    monkeypatch.setattr(resume, "time", Clock)
    monkeypatch.setattr(resume, "write_atomically", slow_write)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        x, y = samples()
        for _ in range(1000):
            Clock.now += 1.0
            yield x, y

    measure(linear_model(), stream(), resume=tmp_path / "partial.npz", save_every=10.0)
    assert len(writes) >= 3
    assert 5.0 * len(writes) <= 0.03 * Clock.now


def test_a_stream_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    model, passes = linear_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))

    def stopped() -> Iterator[tuple[Tensor, Tensor]]:
        batches = generator()
        yield next(batches)
        yield next(batches)
        raise KeyboardInterrupt

    options: dict[str, Any] = {"bounds": [Sampled(points=5)], "resume": file}
    with pytest.raises(KeyboardInterrupt):
        measure(model, stopped(), **options)
    assert read_partial_results(file)["index"].tolist() == list(range(6))
    resumed = measure(model, generator(), **options)
    passes.clear()
    whole = measure(model, generator(), bounds=[Sampled(points=5)])
    for name, column in whole.columns().items():
        assert (resumed.columns()[name] == column).all()
    robust = tmp_path / "attacks.npz"
    options = {"attacks": [PGD(steps=3)], "resume": robust}
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(model, stopped(), [0.1, 0.3], **options)
    again = robust_accuracy(model, generator(), [0.1, 0.3], **options)
    assert str(again) == str(
        robust_accuracy(model, generator(), [0.1, 0.3], attacks=[PGD(steps=3)])
    )
    with pytest.raises(ValueError, match="results with other eps"):
        robust_accuracy(model, generator(), [0.2], **options)
    with pytest.raises(ValueError, match="another model"):
        robust_accuracy(model, generator(), [0.1, 0.3], logits_fn=lambda z: 2 * z, **options)


def test_a_limit_ends_a_stream_that_has_no_end() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield samples()

    assert len(measure(linear_model(), endless(), limit=50)) == 50


def test_there_may_be_no_results_yet(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results at"):
        read_partial_results(tmp_path / "partial.npz")
