"""A job whose rank was killed goes on from what every rank had finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed.killed_worker import Counted
from distributed.measured import BOUNDS, COUNT, EPS, digest, make_data
from distributed.run_on_ranks import HERE, require_gloo, run_on_ranks
from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD, Nearest
from margin_ext.measurement import MarginReport, RobustAccuracy, read_partial_results

require_gloo()

pytestmark = pytest.mark.slow

WORKER = str(HERE / "killed_worker.py")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("what", "size"), [("margins", 2), ("attacks", 3)])
def test_the_job_starts_again_and_only_the_rest_is_measured(
    tmp_path: Path, what: str, size: int
) -> None:
    done = run_on_ranks(3, WORKER, what, "kill", "none.json", cwd=tmp_path)
    assert done.returncode != 0
    assert "(SIGKILL)" in done.stderr
    file = tmp_path / "partial.npz"
    known = len(read_partial_results(file)["index"])
    # It could be read when the rank was killed, and nothing was lost.
    assert 0 < json.loads((tmp_path / "seen.json").read_text()) <= known < COUNT
    # Now with another number of ranks.
    done = run_on_ranks(size, WORKER, what, "go on", "found.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    one, passes = measured(what)
    assert [text for text, _ in found] == [digest(one)] * size
    # In attacks each rank makes the diagnosis, which is most of the passes here.
    assert what == "attacks" or sum(count for _, count in found) < passes
    assert read_partial_results(file)["index"].tolist() == list(range(COUNT))
    # One process finds everything done.
    again, passes = measured(what, resume=file)
    assert digest(again) == digest(one)
    assert what == "attacks" or passes < 10
    # A file of results that the data do not have is no file of theirs.
    with pytest.raises(ValueError, match=f"holds results of {COUNT} samples, the data has 20"):
        measured(what, resume=file, limit=20)


def measured(what: str, **options: Any) -> tuple[MarginReport | RobustAccuracy, int]:
    """What one process finds, and how often it ran the model."""
    model = Counted(kills=False)
    if what == "margins":
        return measure(model, make_data(), bounds=BOUNDS, batch_size=2, **options), model.passes
    attacks = [Nearest(search=BOUNDS[0]), PGD(steps=5)]
    return (
        robust_accuracy(model, make_data(), EPS, attacks=attacks, batch_size=2, **options),
        model.passes,
    )
