"""MarginTrainer takes models that ``fully_shard`` has split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.run_on_ranks import HERE, require_gloo, run_on_ranks

require_gloo()
pytest.importorskip("transformers", reason="needs transformers: extra transformers")
pytest.importorskip("accelerate", reason="needs accelerate: extra transformers")


@pytest.mark.slow
def test_split_models_have_the_gradients_and_margins_of_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    done = run_on_ranks(2, str(HERE / "trainer_worker.py"), str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(path.read_text())
    assert found["images"] < 1e-5
    assert found["texts"] < 1e-5
    assert found["measured"] == 1.0
