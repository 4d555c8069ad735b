"""``max_memory`` is kept, by bounds that look at many points a sample too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margin_ext import measure
from margin_ext.bounds import Certified, MinimumDistance, Sampled
from margin_ext.measurement.memory import PeakMemory, parse_memory, samples_that_fit
from margin_ext.models.evaluation_mode import evaluation_mode


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(8 * 12 * 12, 4),
    )  # fmt: skip


DATA = torch.rand(64, 1, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4


@pytest.mark.parametrize(
    "bounds", [[], [MinimumDistance(steps=5)], [Sampled(points=130, nearest=1, radius=1.0)]]
)
@pytest.mark.parametrize("memory", [400_000, "1MB"])
def test_the_memory_is_kept_and_no_answer_depends_on_it(bounds: list, memory: int | str) -> None:  # type: ignore[type-arg]
    model = network()
    free = measure(model, DATA, bounds=bounds)
    with PeakMemory() as used:
        report = measure(model, DATA, bounds=bounds, max_memory=memory)
    assert used.peak < parse_memory(memory)
    for name, column in free.columns().items():
        torch.testing.assert_close(
            torch.from_numpy(report.columns()[name]), torch.from_numpy(column), rtol=2e-4, atol=1e-5
        )


def test_half_the_memory_gives_half_the_samples() -> None:
    model = network()
    with evaluation_mode(model):
        more = samples_that_fit(model, DATA[0], "4MB")
        fewer = samples_that_fit(model, DATA[0], "2MB")
        assert 0.4 < fewer / more < 0.6
        assert samples_that_fit(model, DATA[0], 1) == 1
        # A forward and a backward pass of so many samples stay within.
        x = DATA[0].repeat(20, 1, 1, 1)[:more].requires_grad_()
        with PeakMemory() as used:
            torch.autograd.grad(model(x).sum(), x)
        assert 0.3 * parse_memory("4MB") < used.peak < parse_memory("4MB")


def relu_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(75, 40), nn.ReLU(),
        nn.Linear(40, 4),
    )  # fmt: skip


@pytest.mark.parametrize("bound", [Certified(), Certified(branches=40)])
def test_certified_bounds_keep_the_memory(bound: Certified) -> None:
    model, data = relu_network(), (DATA[0][:3], DATA[1][:3])
    memory = 4_000_000 if not bound.branches else 120_000_000
    with PeakMemory() as free:
        right = measure(model, data, bounds=[bound])
    with PeakMemory() as used:
        report = measure(model, data, bounds=[bound], max_memory=memory)
    assert used.peak < memory
    if not bound.branches:
        assert free.peak > memory
    for name, column in right.columns().items():
        torch.testing.assert_close(
            torch.from_numpy(report.columns()[name]), torch.from_numpy(column), rtol=2e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (Certified(), "does not hold the certified bounds"),
        (Sampled(points=512, chunk=512), "set a smaller chunk"),
    ],
)
def test_too_little_memory_for_a_bound_is_told(bound: object, message: str) -> None:
    data = DATA[0][:1], relu_network()(DATA[0][:1]).argmax(dim=1)
    with pytest.raises(ValueError, match=message):
        measure(relu_network(), data, bounds=[bound], max_memory="100KB")  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["much", "-1", "0", "3 XB", "1K", ""])
def test_what_is_no_memory_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="max_memory must be"):
        parse_memory(text)
