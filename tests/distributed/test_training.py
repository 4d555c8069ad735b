"""Trainings over several processes, killed and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training.small_images import checkpoint, same_weights, weights, write_images

from distributed.run_on_ranks import HERE, require_gloo, run_on_ranks
from distributed.training_worker import SPLIT
from margin_ext.measurement.monitor import read_history

require_gloo()

pytestmark = pytest.mark.slow

RANKS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    write_images(folder / "images.npz")
    (folder / "small_models.py").write_text(SPLIT)
    worker = str(HERE / "training_worker.py")
    done = run_on_ranks(RANKS, worker, "kill", "none.json", cwd=folder)
    assert done.returncode != 0
    assert "(SIGKILL)" in done.stderr
    done = run_on_ranks(RANKS, worker, "go on", "found.json", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "found.json").read_text())


def test_a_killed_training_ends_like_one_that_was_not(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    """With dropout and BatchNorm, and last batches that are smaller than the number of ranks."""
    folder, ranks = found
    epoch, step = ranks[0]["killed in"]
    assert (epoch, step) == (1, 2)  # in mid-epoch
    assert [one["killed in"] for one in ranks] == [[epoch, step]] * RANKS
    assert same_weights(folder / "killed", folder / "whole")
    assert checkpoint(folder / "killed")["losses"] == checkpoint(folder / "whole")["losses"]
    histories = [read_history(folder / out / "history.jsonl") for out in ("killed", "whole")]
    for one, other in zip(*histories, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    measured = [
        json.loads((folder / out / "measured.json").read_text()) for out in ("killed", "whole")
    ]
    assert measured[0] == measured[1]


def test_a_model_that_asks_for_fully_shard_trains_like_one_under_ddp(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, ranks = found
    assert [one["split stopped in"] for one in ranks] == [[1, 2]] * RANKS
    split, whole = weights(folder / "split"), weights(folder / "ddp")
    assert split.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)
    assert all(one["split measured"] for one in ranks)
    assert json.loads((folder / "split" / "report.json").read_text())
    assert len({one["accuracy"] for one in ranks}) == 1
    assert "leave it out" in ranks[2]["weight average"]
