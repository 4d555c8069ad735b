"""MarginLedger against sums made by hand, over kills, ranks and bad input."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from margin_ext.ledger import MarginLedger


def ledger_of(history: list[list[float]]) -> MarginLedger:
    """A ledger whose sample i has seen history[i]; NaN: the sample was not in that epoch."""
    ledger = MarginLedger(len(history))
    for epoch in zip(*history, strict=True):
        index = torch.tensor([i for i, value in enumerate(epoch) if not math.isnan(value)])
        values = torch.tensor([value for value in epoch if not math.isnan(value)])
        order = torch.randperm(len(index))
        ledger.update(index[order].long(), values[order])
    return ledger


NAN = math.nan


def test_sums_and_events():
    ledger = ledger_of(
        [
            [1.0, 2.0, 3.0, 4.0],  # learnt at once
            [1.0, -1.0, 1.0, 0.0],  # forgotten twice
            [-2.0, NAN, NAN, -4.0],  # never learnt, seldom seen
            [NAN, 5.0, NAN, NAN],  # seen once
            [NAN, NAN, NAN, NAN],
        ]
    )
    assert ledger.count.tolist() == [4, 4, 2, 1, 0]
    np.testing.assert_allclose(ledger.average, [2.5, 0.25, -3.0, 5.0, NAN])
    np.testing.assert_allclose(ledger.area, [7.5, 0.5, -3.0, 0.0, NAN])
    assert ledger.forgotten.tolist() == [0, 2, 0, 0, 0]
    np.testing.assert_allclose(ledger.first, [1, 1, -2, 5, NAN])
    np.testing.assert_allclose(ledger.last, [4, 0, -4, 5, NAN])


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out_and_counted(bad):
    ledger = MarginLedger(2)
    for value in (bad, 1.0, bad, -1.0):
        ledger.update(torch.tensor([0, 1]), torch.tensor([value, 2.0]))
    assert ledger.skipped.tolist() == [2, 0]
    assert ledger.count.tolist() == [2, 4]
    assert ledger.average.tolist() == [0.0, 2.0]
    assert ledger.forgotten.tolist() == [1, 0]
    assert ledger.area.tolist() == [0.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_made_in_double(dtype):
    ledger = MarginLedger(1)
    value = torch.tensor([0.1], dtype=dtype, requires_grad=True)
    for _ in range(1000):
        ledger.update(torch.tensor([0], dtype=torch.int32), value)
    assert ledger.average.item() == pytest.approx(value.item(), rel=1e-12)
    assert not ledger.average.requires_grad


def test_scores_rank_as_the_averages_do():
    ledger = ledger_of([[-3.0], [0.0], [2.0], [50.0]])
    scores = ledger.scores()
    assert scores.dtype == np.float64
    assert list(np.argsort(scores)) == [0, 1, 2, 3]
    assert scores[1] == 0.5
    assert ((scores >= 0) & (scores <= 1)).all()


def test_scores_of_unseen_samples_are_asked_for():
    ledger = ledger_of([[1.0], [NAN], [NAN]])
    with pytest.raises(ValueError, match="2 of 3 samples have no value yet, the first is 1"):
        ledger.scores()
    assert ledger.scores(missing=1.0)[1:].tolist() == [1.0, 1.0]


def test_a_resumed_ledger_goes_on_as_one_that_was_never_stopped(tmp_path):
    torch.manual_seed(0)
    batches = [(torch.randperm(50)[:20], torch.randn(20)) for _ in range(12)]
    whole, part = MarginLedger(50), MarginLedger(50)
    for index, value in batches:
        whole.update(index, value)
    for index, value in batches[:5]:
        part.update(index, value)
    resumed = MarginLedger.load(part.save(tmp_path / "sub" / "ledger.pt"))
    in_checkpoint = MarginLedger(50)
    in_checkpoint.load_state_dict(part.state_dict())
    for index, value in batches[5:]:
        resumed.update(index, value)
        in_checkpoint.update(index, value)
    for name, tensor in whole.state_dict().items():
        if name != "version":
            assert torch.equal(tensor.nan_to_num(7), resumed.state_dict()[name].nan_to_num(7))
            assert torch.equal(tensor.nan_to_num(7), in_checkpoint.state_dict()[name].nan_to_num(7))


@pytest.mark.parametrize(
    ("index", "value", "error", "told"),
    [
        ([0, 3], [1.0, 1.0], ValueError, r"index must lie in \[0, 2\], got 0 to 3"),
        ([-1], [1.0], ValueError, "got -1 to -1"),
        ([1, 1], [1.0, 2.0], ValueError, "stands twice"),
        ([0], [1.0, 2.0], ValueError, r"shapes \[1\] and \[2\]"),
        ([[0]], [[1.0]], ValueError, r"must both be \[B\]"),
        ([0.0], [1.0], TypeError, "index must hold integers"),
        ([True], [1.0], TypeError, "index must hold integers"),
        ([0], [1], TypeError, "value must be floating"),
    ],
)
def test_bad_batches_are_refused(index, value, error, told):
    ledger = MarginLedger(3)
    with pytest.raises(error, match=told):
        ledger.update(torch.tensor(index), torch.tensor(value))
    assert ledger.count.tolist() == [0, 0, 0]


def test_bad_ledgers_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        MarginLedger(0)
    with pytest.raises(ValueError, match="version is None"):
        MarginLedger(3).load_state_dict({})
    with pytest.raises(ValueError, match="of 2 samples, and this ledger of 3"):
        MarginLedger(3).load_state_dict(MarginLedger(2).state_dict())
    lacking = MarginLedger(3).state_dict()
    del lacking["area"]
    with pytest.raises(ValueError, match="lacks area"):
        MarginLedger(3).load_state_dict(lacking)


def test_an_empty_batch_changes_nothing():
    ledger = MarginLedger(2)
    ledger.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert ledger.count.tolist() == [0, 0]


def test_another_device_is_told():
    ledger = MarginLedger(2, device="cpu")
    with pytest.raises(ValueError, match="ledger is on cpu and the values are on meta"):
        ledger.update(torch.tensor([0]), torch.empty(1, device="meta"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_device():
    ledger = MarginLedger(4)
    index, value = torch.tensor([0, 2]).pin_memory(), torch.ones(2, device="cuda")
    ledger.update(index, value)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ledger.update(index, value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ledger.count.device.type == "cuda"
    assert ledger.average.tolist()[2] == 1.0


RANK = """
import sys, torch
from torch import distributed
from margin_ext.ledger import MarginLedger
rank, store, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
whole, mine = MarginLedger(10), MarginLedger(10)
for epoch in range(6):
    order, value = torch.randperm(10)[:8], torch.randn(8)
    whole.update(order, value)
    mine.update(order[rank::2], value[rank::2])
    mine.synchronize()
    if epoch == 2:
        if rank == 0:
            mine.save(path)
        distributed.barrier()
        mine = MarginLedger.load(path)
for name, tensor in whole.state_dict().items():
    if name != "version":
        torch.testing.assert_close(mine.state_dict()[name], tensor, equal_nan=True)
distributed.destroy_process_group()
"""


def test_two_ranks_have_what_one_would(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    command = [sys.executable, "-c", RANK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(tmp_path / "ledger.pt")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


def test_cleanlab_ranks_by_the_scores():
    rank = pytest.importorskip("cleanlab.rank", reason="needs cleanlab: extra cleanlab")
    ledger = ledger_of([[3.0], [-2.0], [1.0], [-5.0]])
    assert rank.find_top_issues(ledger.scores(), top=2).tolist() == [3, 1]
