"""How batches are dealt out to ranks, without processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from margin_ext.data import PerRank
from margin_ext.data.batches import Batch, Batches
from margin_ext.data.reading import Reading
from margin_ext.measurement.measuring import measuring
from margin_ext.measurement.resume import PartialResults, read_partial_results
from margin_ext.ranks import ALONE, Ranks, all_ranks
from margin_ext.together import RankFailedError, Together
from measurement.networks import linear_model

COUNT = 23


def samples() -> tuple[Tensor, Tensor]:
    return torch.arange(COUNT * 12.0).reshape(COUNT, 12).double(), torch.arange(COUNT) % 5


SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": samples,
    "data set": lambda: TensorDataset(*samples()),
    "loader": lambda: DataLoader(TensorDataset(*samples()), batch_size=5),
    "dropping loader": lambda: DataLoader(TensorDataset(*samples()), batch_size=5, drop_last=True),
    "iterable": lambda: list(zip(*(t.split([1, 9, 2, 11]) for t in samples()), strict=True)),
}


def dealt(source: Any, ranks: Ranks, **options: Any) -> list[Batch]:
    return list(Batches(source, Reading(**options), ranks))


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"limit": 11}, {"limit": 1}])
@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", SOURCES)
def test_ranks_have_the_batches_of_one_process(
    name: str, size: int, options: dict[str, Any]
) -> None:
    whole = dealt(SOURCES[name](), ALONE, **options)
    shares = [dealt(SOURCES[name](), Ranks(rank, size), **options) for rank in range(size)]
    joined = sorted((batch for share in shares for batch in share), key=lambda one: one.first)
    assert len(joined) == len(whole)
    for found, wanted in zip(joined, whole, strict=True):
        assert found.indices == wanted.indices
        assert torch.equal(found.inputs, wanted.inputs)
        assert torch.equal(found.target, wanted.target)


@pytest.mark.parametrize("name", SOURCES)
def test_all_ranks_have_one_order(name: str) -> None:
    orders = set()
    for rank in range(3):
        batches = Batches(SOURCES[name](), None, Ranks(rank, 3))
        assert sum(batch.target.shape[0] for batch in batches) <= COUNT
        orders.add(batches.order)
    assert len(orders) == 1
    assert orders != {""}


def test_own_samples_are_numbered_as_they_are_dealt() -> None:
    x, y = samples()
    for rank in range(3):
        own = [(x[rank::3], y[rank::3])]
        (batch,) = dealt(PerRank(own), Ranks(rank, 3), limit=20)
        assert list(batch.indices) == [i for i in range(rank, COUNT, 3) if i < 20]
        assert torch.equal(batch.inputs, x[list(batch.indices)])
        assert batch.part(2, 3).indices == batch.indices[2:5]


def test_only_rank_0_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm: extra demo")
    for rank, shown in ((0, True), (1, False)):
        batches = Batches(samples(), Reading(4), Ranks(rank, 2))
        with measuring(linear_model(), batches, title="a title", progress=True) as found:
            assert len(list(found)) == 3
        assert ("a title" in capsys.readouterr().err) == shown


def test_a_process_alone_meets_nobody() -> None:
    with Together(ALONE) as meeting:
        meeting.check()
        assert meeting.exchange("word") == ["word"]
    with pytest.raises(KeyError, match="mine"), Together(ALONE):
        raise KeyError("mine")
    assert issubclass(RankFailedError, RuntimeError)


def test_ranks_need_a_process_group() -> None:
    with pytest.raises(ValueError, match="there is no process group: start the program with"):
        all_ranks()


def test_files_of_all_ranks_are_read(tmp_path: Any) -> None:
    """In pieces: a batch whose samples are known in part, from two files."""
    path = tmp_path / "a.rank7.npz"  # the name of another file's rank
    columns = {"value": torch.zeros(0)}
    for rank in range(3):
        partial = PartialResults(path, {}, 0.0, Ranks(rank, 3))
        for batch in dealt(samples(), Ranks(rank, 4), batch_size=3):
            columns = {"value": batch.inputs[:, 0].numpy()}
            partial.append(batch, columns)
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".npz") == [
        "a.rank7.npz", "a.rank7.rank1.npz", "a.rank7.rank2.npz",
    ]  # fmt: skip
    known = [i for i in range(COUNT) if i // 3 % 4 != 3]
    kept = read_partial_results(path)
    assert kept["index"].tolist() == known
    assert kept["value"].tolist() == [12.0 * i for i in known]
    partial = PartialResults(path, {}, 0.0)
    (whole,) = dealt(samples(), ALONE)
    pieces = partial.pieces(whole)
    assert [(list(piece.indices), found is not None) for piece, found in pieces] == [
        (list(range(9)), True),
        ([9, 10, 11], False),
        (list(range(12, 21)), True),
        ([21, 22], False),
    ]
    with pytest.raises(ValueError, match="other settings_"):
        PartialResults(path, {"settings_": 1})
