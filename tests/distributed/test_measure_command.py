"""``margin-ext measure`` under torchrun writes what one process writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.run_on_ranks import require_gloo, run_on_ranks
from margin_ext.command_line import main

require_gloo()

pytestmark = pytest.mark.slow

MODELS = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))

def data():
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x[5] = 0.0
    return torch.utils.data.TensorDataset(x, torch.arange(40) % 3)
"""
WORDS = (
    "measure", "--model", "shared_models:good", "--data", "shared_models:data", "--batch-size", "8",
    "--bounds", "minimum_distance", "--attack", "0.1", "0.3", "--steps", "4", "--threads", "1",
    "--data-range", "0", "1",
)  # fmt: skip


def test_three_processes_write_the_files_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shared_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main([*WORDS, "--out", "one"]) == 0
    one = capsys.readouterr()
    done = run_on_ranks(3, "-m", "margin_ext", *WORDS, "--out", "three", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    # Once, by one of them.
    assert done.stdout == one.out.replace("saved in one", "saved in three")
    for name in ("report.csv", "robust_accuracy_l2.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "three")]
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}
    for name in ("partial.rank2.npz", "partial_attacks_l2.rank1.npz"):
        assert (tmp_path / "three" / name).exists()
    # Whoever can, tells what is wrong; nobody waits.
    words = [*WORDS, "--out", "three", "--limit", "20"]
    done = run_on_ranks(2, "-m", "margin_ext", *words, cwd=tmp_path)
    assert done.returncode != 0
    assert "holds results of 40 samples, the data has 20" in done.stderr
