"""Default types and devices, autocast, threads and gradient modes of the caller change nothing."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import nn

from margin_ext import measure, robust_accuracy
from margin_ext.bounds import Sampled
from margin_ext.reference import linear_margin
from measurement.training_mode import CLASSES, DIMS, exact_margins, labelled, normalised_linear


@pytest.mark.parametrize("inside", [True, False])
def test_inference_tensors(inside: bool) -> None:
    net = normalised_linear()
    with torch.inference_mode():
        x, y = labelled(net)
        x, y = x.clone(), y.clone()
    assert x.is_inference()
    with torch.inference_mode(inside):
        report = measure(net, (x, y), bounds=["minimum_distance", Sampled(points=4)])
        assert robust_accuracy(net, (x, y), 1e-4).accuracy == report.accuracy == 1.0


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(device: str) -> None:
    net = nn.Sequential(nn.Linear(DIMS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    bounds = ["minimum_distance", "certified", Sampled(points=4)]
    options: dict[str, Any] = {"data_range": (-9.0, 9.0), "input_std": [0.5] * DIMS}
    right = measure(net, data, bounds=bounds, **options)
    robust = robust_accuracy(net, data, [0.1, 0.5], **options)
    torch.set_default_device(device)
    try:
        report = measure(net, data, bounds=bounds, **options)
        again = robust_accuracy(net, data, [0.1, 0.5], **options)
    finally:
        torch.set_default_device(None)
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name
    assert again.curve() == robust.curve()
    assert again.diagnosis == robust.diagnosis


def test_a_default_type_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(DIMS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    bounds = ["minimum_distance", "certified", Sampled(points=4)]
    right = measure(net, data, bounds=bounds, p=[2, "inf"])
    robust = robust_accuracy(net, data, [0.1, 0.5], data_range=(-9, 9))
    torch.set_default_dtype(torch.float64)
    try:
        report = measure(net, data, bounds=bounds, p=[2, "inf"])
        again = robust_accuracy(net, data, [0.1, 0.5], data_range=(-9, 9))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name
        assert report.columns()[name].dtype == column.dtype
    assert again.curve() == robust.curve()


@pytest.mark.parametrize("model", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.float16])
def test_data_and_model_of_other_types(model: torch.dtype, given: torch.dtype) -> None:
    net = nn.Linear(DIMS, CLASSES).to(model)
    x, y = torch.randn(12, DIMS).to(given), torch.arange(12) % CLASSES
    expected = linear_margin(net.weight.double(), net.bias.double(), x.double(), y, p=2).detach()
    report = measure(net, (x, y))
    torch.testing.assert_close(
        torch.from_numpy(report.margin).double(), expected, rtol=1e-3, atol=1e-5
    )
    robust_accuracy(net, (x, y), 0.1)


def test_several_threads_measure_one_model() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    expected = exact_margins(net, x, y)
    errors: list[float] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        for _ in range(5):
            found = torch.from_numpy(measure(net, (x, y), batch_size=7).margin)
            errors.append(float((found - expected).abs().max()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 20
    assert max(errors) < 1e-9
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_autocast_of_the_caller_is_off() -> None:
    net = nn.Sequential(nn.Linear(DIMS, 16), nn.GELU(), nn.Linear(16, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    right = measure(net, data, bounds=["minimum_distance"])
    robust = robust_accuracy(net, data, [0.1, 0.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = measure(net, data, bounds=["minimum_distance"])
        assert robust_accuracy(net, data, [0.1, 0.5]).curve() == robust.curve()
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name


def test_the_gradient_mode_of_the_caller_does_not_matter() -> None:
    net = normalised_linear()
    data = labelled(net)
    right = measure(net, data).average_margin
    with torch.no_grad():
        assert measure(net, data).average_margin == right
    assert math.isfinite(right)
