"""Several processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from margin_ext.measurement.monitor import read_history
from margin_ext.ranks import ALONE, Ranks, started_ranks
from margin_ext.training.settled_buckets import settle_buckets
from training.small_images import SMALL, checkpoint, train, weights


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2, 5, 14])
def test_the_mean_over_the_shares_is_that_of_the_batch(size: int, batch: int) -> None:
    numbers = torch.randperm(100)[:batch]
    values = torch.rand(100, dtype=torch.float64)
    shares = [Ranks(rank, size).part(numbers) for rank in range(size)]
    mean = sum(factor * values[part].mean() for part, factor in shares) / size
    torch.testing.assert_close(mean, values[numbers].mean())
    counted = torch.cat([part for part, factor in shares if factor > 0])
    assert counted.tolist() == numbers.tolist()


class TwoWays(torch.nn.Module):
    """Leaves a layer out in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.always(x) + self.sometimes(x)
        return both if self.training else self.always(x)


@pytest.mark.parametrize("build", [TwoWays, lambda: torch.nn.Linear(3, 2)])
def test_steps_follow_the_settling_of_buckets(build) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(build())
        settle_buckets(model, torch.rand(1, 3))
        assert model.training
        for _ in range(2):
            model(torch.rand(4, 3)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with started_ranks("cpu") as ranks:
        assert ranks is ALONE
        assert ranks.is_main
        assert ranks.broadcast_from_rank0([1]) == [1]


@pytest.mark.slow
def test_torchrun_gives_the_weights_of_one_process(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    # 54 training images in batches of 53: the last one has a single image, and so one process none.
    words = (*SMALL, "--model", "small_models:plain", "--batch-size", "53", "--beta", "1e-3")
    words = (*words, "--epochs", "3", "--no-report", "--threads", "1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    runner = Path(__file__).resolve().parents[1] / "distributed" / "leave_at_once.py"
    torchrun += ["--nproc-per-node", "2", str(runner), "-m", "margin_ext"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "train", "--out", str(tmp_path / "several"), *words],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("accuracy, train / test") == 1
    assert train(tmp_path / "one", *words) == 0
    several, one = weights(tmp_path / "several"), weights(tmp_path / "one")
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-5)
    losses = [checkpoint(tmp_path / out)["losses"] for out in ("several", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    records = read_history(tmp_path / "several" / "history.jsonl")
    assert [r["epoch"] for r in records if r["split"] == "train"] == [0, 1, 2, 3]
    # Two processes round otherwise than one.
    capsys.readouterr()
    assert train(tmp_path / "several", "--resume") == 2
    assert "processes: 2 there, 1 here" in capsys.readouterr().err
