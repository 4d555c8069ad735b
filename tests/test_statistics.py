"""The statistics of a batch: by hand, and without hold on the graph."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from problems import random_problem

from margin_ext.distributed import reduce_statistics
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import STATISTIC_NAMES, BatchStatistics

# Gaps 2, -1, 4 and an ignored sample; gradient norms 1, 2, 0.5: margins 2, -0.5, 8.
LOGITS = torch.tensor([[3.0, 1.0], [2.0, 1.0], [0.0, 4.0], [9.0, 9.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 1, -100])
GRAD = torch.tensor([[0.6, 0.8], [-2.0, 0.0], [0.0, 0.5], [7.0, 7.0]], dtype=torch.float64)


def statistics(backend, reduction="mean", weight=None, grad=GRAD) -> dict[str, float]:
    out = backend.ops.average_margin_loss(
        backend.place(LOGITS),
        backend.place(TARGET),
        None if grad is None else backend.place(grad),
        regularizer=Regularizer.ramp(0, 3),
        reduction=reduction,
        weight=None if weight is None else backend.place(weight),
    )
    return out.statistics.as_floats()


def cross_entropies() -> list[float]:
    return [math.log1p(math.exp(-gap)) for gap in (2, -1, 4)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_by_hand(backend, reduction):
    assert statistics(backend, reduction) == pytest.approx(
        {
            "minimum_margin": -0.5,
            "average_margin": (2 - 0.5 + 8) / 3,
            "average_gap": (2 - 1 + 4) / 3,
            "average_gradient_norm": (1 + 2 + 0.5) / 3,
            "accuracy": 2 / 3,
            "cross_entropy": sum(cross_entropies()) / 3,
            "regularizer": (1 + 3 + 0) / 3,
            "count": 3,
            "gradient_scale": 4 / 3 if reduction == "mean" else 1,
        }
    )


def test_weights_weight_the_loss_and_not_the_margins(backend):
    found = statistics(backend, weight=torch.tensor([1.0, 3.0], dtype=torch.float64))
    ce = cross_entropies()
    assert found["average_margin"] == pytest.approx((2 - 0.5 + 8) / 3)
    assert found["cross_entropy"] == pytest.approx((ce[0] + 3 * ce[1] + 3 * ce[2]) / 7)
    assert found["regularizer"] == pytest.approx((1 + 3 * 3 + 0) / 7)


def test_of_the_gap(backend):
    found = statistics(backend, grad=None)
    assert found["minimum_margin"] == -1
    assert found["average_margin"] == pytest.approx(5 / 3)
    assert math.isnan(found["average_gradient_norm"])


@pytest.mark.parametrize("batch", [1, 31, 1024, 1025, 5000])
def test_large_batches(compiled, batch):
    """Around the size from which samples are summed in groups."""
    problem = random_problem(batch, 5, (9,), torch.float32).to(compiled.device)
    out = compiled.ops.average_margin_loss(
        problem.logits, problem.target, problem.grad, regularizer=Regularizer.ramp(0, 1)
    )
    found = out.statistics
    margin = out.margin.double()
    torch.testing.assert_close(found.average_margin.double(), margin.mean(), rtol=1e-6, atol=1e-9)
    assert float(found.minimum_margin) == float(margin.min())
    assert float(found.accuracy) == pytest.approx(float((out.gap > 0).double().mean()))
    assert float(found.count) == batch


def test_a_mapping_of_numbers_on_the_device():
    values = torch.arange(len(STATISTIC_NAMES), dtype=torch.float32)
    found = BatchStatistics(values)
    assert list(found) == list(STATISTIC_NAMES)
    assert len(found) == len(STATISTIC_NAMES)
    for i, name in enumerate(STATISTIC_NAMES):
        assert found[name].shape == ()
        assert found[name].data_ptr() == values[i].data_ptr()
        if name != "gradient_scale":
            assert getattr(found, name) == i
    assert found.as_floats()["accuracy"] == 4
    with pytest.raises(KeyError, match="nothing"):
        found["nothing"]
    assert "average_margin=1," in repr(found)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied.as_floats() == found.as_floats()


@pytest.mark.parametrize("smallest", [math.inf, -math.inf, math.nan, 0.5])
def test_a_minimum_without_bound_is_told(smallest):
    """Where all margins are infinite, so is their minimum; NaN is that of ranks without samples."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        values = torch.ones(len(STATISTIC_NAMES))
        values[STATISTIC_NAMES.index("minimum_margin")] = smallest
        found = reduce_statistics(BatchStatistics(values)).minimum_margin
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, torch.tensor(smallest), equal_nan=True)
