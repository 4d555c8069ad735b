"""Several processes that measure together give, on each of them, the report of one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distributed.run_on_ranks import HERE, require_gloo, run_on_ranks

require_gloo()

pytestmark = pytest.mark.slow

# More ranks than some of the sources have batches.
RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    done = run_on_ranks(RANKS, str(HERE / "measuring_worker.py"), str(path), cwd=path.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    values: dict[str, list[Any]] = json.loads(path.read_text())
    return values


@pytest.mark.parametrize(
    "scenario",
    [
        "tensors", "data set", "loader", "loader with workers", "shuffling loader", "generator",
        "stream", "fewer batches than ranks", "one batch", "limit", "parts of a batch", "ddp",
        "attacks", "attacks, one batch", "attacks with a report",
        "fsdp", "fsdp, one batch", "fsdp, attacks",
    ],
)  # fmt: skip
def test_every_rank_has_the_report_of_one_process_to_the_bit(
    found: dict[str, list[Any]], scenario: str
) -> None:
    assert found[scenario] == [True] * RANKS


def test_a_process_group_may_hold_some_of_the_ranks(found: dict[str, list[Any]]) -> None:
    assert found["two of the ranks"] == [True, True, None, None]


@pytest.mark.parametrize("scenario", ["random states are left", "fsdp is left as it was"])
def test_nothing_is_left_behind(found: dict[str, list[Any]], scenario: str) -> None:
    assert found[scenario] == [True] * RANKS


def test_ranks_may_read_data_of_their_own(found: dict[str, list[Any]]) -> None:
    assert max(found["own data"]) < 1e-12  # batches are others, so that roundings may be
    assert found["own data of other sizes"] == [8] * RANKS


@pytest.mark.parametrize(
    ("scenario", "own"),
    [
        ("one rank's argument", 'ValueError: p must be a number >= 1 or "inf", got 0.5'),
        ("one rank's data", "ValueError: the inputs from sample 36 on hold NaN or infinity"),
        ("one rank's model, in the middle", "no memory left here"),
        ("a folder that is a file", "FileExistsError"),
        ("an attack", "ValueError: attacks must be from"),
    ],
)
def test_an_error_of_one_rank_is_raised_on_all(
    found: dict[str, list[Any]], scenario: str, own: str
) -> None:
    for rank, text in enumerate(found[scenario]):
        assert own in text
        assert text.startswith("RankFailedError: rank 1 failed: ") == (rank != 1)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("another model", "ranks 0 and 1 were not asked for the same: the model differs"),
        ("another seed", "ranks 0 and 1 were not asked for the same: the seed differs"),
        ("other tensors", "ranks 0 and 1 were not asked for the same: the order of the data"),
        ("another stream", "the ranks read other data, or the same in another order"),
        ("distributed sampler", "DistributedSampler gives each rank other samples"),
        ("batches of another size", "names 3 samples for the batch that begins at sample"),
        ("no samples", "the data has no samples"),
        ("no samples of their own", "the data has no samples"),
        ("fsdp alone", "so that all have to run it together"),
        ("tensor parallel", "by something else than fully_shard, such as tensor parallelism"),
        ("fsdp1", "FullyShardedDataParallel (FSDP1) cannot be measured"),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused_on_all(
    found: dict[str, list[Any]], scenario: str, message: str
) -> None:
    assert all(text.startswith("ValueError") and message in text for text in found[scenario])
