from __future__ import annotations

import math

import pytest
import torch

torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics: extra torchmetrics")

from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD
from margin_ext.integrations.torchmetrics import AverageMargin, MinimumMargin, RobustAccuracy
from tests.integrations.networks import small_data, small_network

MARGINS = torch.tensor([1.0, -2.0, math.nan, 4.0, 0.5])


def test_average_and_minimum_are_those_of_measure():
    net, (inputs, target) = small_network(), small_data()
    margin = torch.from_numpy(measure(net, (inputs, target)).norms[2.0].margin)
    both = torchmetrics.MetricCollection([AverageMargin(), MinimumMargin()])
    for part in margin.split(7):
        both.update(part)
    found = both.compute()
    assert found["AverageMargin"] == pytest.approx(margin.mean().item(), rel=1e-6)
    assert found["MinimumMargin"] == margin.min()
    both.reset()
    both.update(margin[:1])
    assert both.compute()["AverageMargin"] == margin[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unknown_margins_are_left_out_and_counted(dtype):
    average, minimum = AverageMargin(), MinimumMargin()
    for metric in (average, minimum):
        metric.update(MARGINS.to(dtype).requires_grad_())
        metric.update(torch.empty(0, dtype=dtype))
        assert (metric.count, metric.skipped) == (4, 1)
    assert average.compute() == 0.875
    assert minimum.compute() == -2


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("metric", [AverageMargin, MinimumMargin])
def test_nothing_gives_nan(metric):
    assert metric().compute().isnan()


@pytest.mark.parametrize("metric", [AverageMargin, MinimumMargin])
def test_wrong_types_are_refused(metric):
    with pytest.raises(TypeError, match=r"floating tensor, got torch.int64"):
        metric().update(torch.tensor([1]))
    with pytest.raises(TypeError, match="floating tensor, got <class 'float'>"):
        metric().update(1.0)


def test_robust_accuracy_is_that_of_the_function():
    net, (inputs, target) = small_network(), small_data()
    options = {"p": "inf", "attacks": [PGD(steps=10)], "data_range": (0.0, 1.0)}
    metric = RobustAccuracy((0.02, 0.1), options)
    metric.update(net, inputs, target)
    whole = robust_accuracy(net, (inputs, target), (0.02, 0.1), progress=False, **options)
    torch.testing.assert_close(metric.compute(), torch.tensor(whole.curve("worst")))
    assert 0 < metric.compute()[1] < metric.compute()[0]

    one = RobustAccuracy(0.02, options)
    for x, y in zip(inputs.split(9), target.split(9), strict=True):
        one.update(net, x, y)
    assert one.count == len(target)
    assert one.compute().dim() == 0
    assert one.compute() == pytest.approx(whole.curve("worst")[0], abs=1.5 / len(target))


def test_radii_have_an_order():
    with pytest.raises(ValueError, match="ascending"):
        RobustAccuracy((1.0, 0.5))


def several_ranks(metric, parts):
    """The state that torchmetrics would gather from one rank for each part."""
    gathered = {name: [] for name in metric._defaults}
    for part in parts:
        metric.reset()
        metric.update(*part)
        for name, states in gathered.items():
            states.append(getattr(metric, name).clone())
    metric.reset()
    metric.update(*parts[0])
    names = iter(metric._defaults)
    # dist_sync_fn is torchmetrics' own way in for what gathers; it is called once a state.
    metric.dist_sync_fn = lambda value, group=None: gathered[next(names)]
    metric.distributed_available_fn = lambda: True
    return metric.compute()


def test_ranks_are_joined():
    parts = [(MARGINS,), (torch.tensor([10.0, -7.0]),)]
    assert several_ranks(AverageMargin(), parts) == pytest.approx(6.5 / 6)
    assert several_ranks(MinimumMargin(), parts) == -7
    net, (inputs, target) = small_network(), small_data()
    halves = [(net, inputs[:8], target[:8]), (net, inputs[8:], target[8:])]
    alone = RobustAccuracy(0.1, {"attacks": [PGD(steps=5)]})
    counts = []
    for half in halves:
        alone.reset()
        alone.update(*half)
        counts.append(alone.robust.item())
    joined = several_ranks(RobustAccuracy(0.1, {"attacks": [PGD(steps=5)]}), halves)
    assert joined == pytest.approx(sum(counts) / 24)
