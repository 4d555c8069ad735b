"""Activation checkpointing: what is computed again sees the layers as its pass had them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradient_modes.networks import CLASSES, gradient
from margin_ext import AverageMarginLoss, Distance, FiniteDifference

SHORT = FiniteDifference("central", 0.01, "absolute")


class Checkpointed(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class InSegments(Checkpointed):
    def forward(self, x):
        layers = nn.Sequential(self.inner, nn.Tanh(), nn.Identity())
        return checkpoint_sequential(layers, 2, x, use_reentrant=False)


class OwnStatistics(nn.Module):
    """Moves a buffer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
                self.steps += 1
        return x - x.mean(0)


class MovingAverage(nn.Module):
    """Puts another tensor in the place of a buffer, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8).double())

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def instance_norm():
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten())


LAYERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(8),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "BatchNorm and dropout": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.4)),
    "InstanceNorm": instance_norm,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "spectral norm, older interface": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "own statistics": OwnStatistics,
    "moving average": MovingAverage,
}
SETTINGS = [
    {},
    {"gradient": "detached"},
    {"gradient": "finite_difference"},
    {"gradient": SHORT},
    {"gradient": FiniteDifference("central", 0.01, "absolute", deferred=False)},
    {"gradient": "auto"},
    {"margin": "secant"},
    {"margin": Distance(form="envelope", noise=0.0)},
    {"fraction": 0.5},
    {"fraction": 0.5, "gradient": SHORT},
]


def network(layer, wrap):
    torch.manual_seed(1)
    middle = nn.Sequential(layer(), nn.Tanh())
    return nn.Sequential(nn.Linear(6, 8), wrap(middle), nn.Linear(8, CLASSES)).double()


def data():
    return torch.randn(8, 6).double(), torch.randint(CLASSES, (8,))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("wrap", [Checkpointed, InSegments])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_and_state_are_those_without_checkpoints(name, wrap, settings):
    criterion = AverageMarginLoss(regularizer="softplus", **settings)
    plain = {
        Checkpointed: lambda inner: inner,
        InSegments: lambda inner: nn.Sequential(inner, nn.Tanh()),
    }
    x, y = data()
    _, found, after = gradient(network(LAYERS[name], wrap), criterion, x, y)
    _, wanted, unwrapped = gradient(network(LAYERS[name], plain[wrap]), criterion, x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for one, other in zip(after.buffers(), unwrapped.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [*SETTINGS, {"batchnorm": "running"}], ids=str)
@pytest.mark.parametrize("wrap", [Checkpointed, lambda inner: inner], ids=["checkpoint", "plain"])
def test_running_statistics_move_once_a_step(wrap, settings):
    x, y = data()
    model = network(lambda: nn.BatchNorm1d(8), wrap)
    alone = network(lambda: nn.BatchNorm1d(8), lambda inner: inner)
    with torch.no_grad():
        alone(x)
    criterion = AverageMarginLoss(regularizer="softplus", **settings)
    criterion.run(model, x, y).loss.backward()
    for one, other in zip(model.buffers(), alone.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["own statistics", "moving average"])
@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("gradient") != "auto"], ids=str)
def test_state_of_own_layers_moves_once_a_step(name, settings):
    x, y = data()
    model = network(LAYERS[name], lambda inner: inner)
    alone = copy.deepcopy(model)
    with torch.no_grad():
        alone(x)
    AverageMarginLoss(regularizer="softplus", **settings).run(model, x, y).loss.backward()
    for one, other in zip(model.buffers(), alone.buffers(), strict=True):
        assert torch.equal(one, other)


# With "auto" a function is differentiated twice.
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_layers_behind_a_function_are_seen(settings):
    x, y = data()
    model = network(LAYERS["BatchNorm and dropout"], lambda inner: inner)
    alone = copy.deepcopy(model)
    criterion = AverageMarginLoss(regularizer="softplus", **settings)
    torch.manual_seed(0)
    criterion.run(alone, x, y).loss.backward()
    torch.manual_seed(0)
    criterion.run(lambda given: 1 * model(given), x, y).loss.backward()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(model.buffers(), alone.buffers(), strict=True):
        assert torch.equal(one, other)


def test_other_checkpoints_are_left_alone():
    from torch.utils import checkpoint as module

    frame = module._CheckpointFrame
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(module._CheckpointFrame is frame)
            return x.tanh()

    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), Looking(), nn.Linear(8, CLASSES)).double()
    AverageMarginLoss(gradient=SHORT).run(model, x, y).loss.backward()
    assert not any(seen[-3:])
    assert module._CheckpointFrame is frame
