"""A job whose rank was killed goes on from what every rank had finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.killed_worker import Counted
from distributed.measured import BOUNDS, COUNT, EPS, digest, make_data
from distributed.run_on_ranks import HERE, require_gloo, run_on_ranks
from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD, Nearest
from margin_ext.measurement import read_partial_results

require_gloo()

pytestmark = pytest.mark.slow

WORKER = str(HERE / "killed_worker.py")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", ["margins", "attacks"])
def test_torchrun_starts_again_and_only_the_rest_is_measured(tmp_path: Path, what: str) -> None:
    options = {"batch_size": 2, "resume": tmp_path / "partial.npz"}
    done = run_on_ranks(3, WORKER, what, "kill", "found.json", cwd=tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["attempt"] == 1
    known = json.loads((tmp_path / "seen.json").read_text())
    assert 0 < known < COUNT
    # One process goes on from the files of three, and finds everything done.
    if what == "margins":
        one = measure(Counted(False), make_data(), bounds=BOUNDS, batch_size=2)
        again = measure(Counted(False), make_data(), bounds=BOUNDS, **options)
    else:
        attacks = [Nearest(search=BOUNDS[0]), PGD(steps=5)]
        one = robust_accuracy(Counted(False), make_data(), EPS, attacks=attacks, batch_size=2)
        again = robust_accuracy(Counted(False), make_data(), EPS, attacks=attacks, **options)
    assert [text for text, _ in found["ranks"]] == [digest(one)] * 3
    assert digest(again) == digest(one)
    kept = read_partial_results(tmp_path / "partial.npz")
    assert kept["index"].tolist() == list(range(COUNT))
    # Another number of ranks finds everything done, too: only the first look runs the model.
    if what == "margins":
        done = run_on_ranks(2, WORKER, what, "go on", "again.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        more = json.loads((tmp_path / "again.json").read_text())["ranks"]
        assert [text for text, _ in more] == [digest(one)] * 2
        assert max(passes for _, passes in more) < 10
