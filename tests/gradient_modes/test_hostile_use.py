"""Finite differences and run() where a user's model, data or loop are out of the ordinary."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES, smooth_mlp
from margin_ext import AverageMarginLoss, Distance, FiniteDifference


def criterion(*, deferred: bool = True) -> AverageMarginLoss:
    difference = FiniteDifference("backward", 0.3, "absolute", deferred=deferred)
    return AverageMarginLoss(regularizer="softplus", gradient=difference)


def vectors(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 12).double(), torch.randint(0, CLASSES, (batch,))


class Masked(nn.Module):
    """The first sample's other classes are out of the question."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, CLASSES)
        ).double()

    def forward(self, x):
        z = self.net(x)
        away = torch.zeros_like(z, dtype=torch.bool)
        away[0, 1:] = True
        return z.masked_fill(away, -torch.inf)


@pytest.mark.parametrize("regularizer", ["ramp", "hinge", "softplus", "exponential"])
@pytest.mark.parametrize("unit", ["margin", "tau"])
@pytest.mark.parametrize("norm", [False, True])
def test_an_infinite_gap_leaves_the_other_samples_their_gradients(regularizer, unit, norm):
    torch.manual_seed(0)
    x, y = vectors()
    y[0] = 0
    loss = AverageMarginLoss(
        gradient=FiniteDifference(unit=unit),
        regularizer=regularizer,
    )
    model = Masked(norm)
    out = loss.run(model, x, y)
    out.loss.backward()
    assert bool(out.loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert float(model.net[0].weight.grad.abs().max()) > 0


def test_lazy_layers_take_their_shape_in_the_first_step():
    x, y = torch.randn(4, 12), torch.randint(CLASSES, (4,))
    model = nn.Sequential(nn.LazyLinear(9), nn.GELU(), nn.LazyLinear(CLASSES))
    for _ in range(2):
        model.zero_grad()
        criterion().run(model, x, y).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def _assign(model):
    state = {name: value.clone() * 2 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _new_memory(model):
    model[-1].weight.data = model[-1].weight.data * 3


def _hook(model):
    model[-1].weight.register_hook(lambda grad: grad * 10)


@pytest.mark.parametrize("change", [_assign, _new_memory, _hook])
def test_other_parameters_or_hooks_in_between_are_an_error(change):
    x, y = vectors()
    model = smooth_mlp()
    loss = criterion().run(model, x, y).loss
    change(model)
    with pytest.raises(RuntimeError, match="replaced, or got hooks, between"):
        loss.backward()


def test_a_parameter_that_is_frozen_in_between_has_no_later_gradient():
    x, y = vectors()
    model = smooth_mlp()
    loss = criterion().run(model, x, y).loss
    model[-1].bias.requires_grad_(False)
    loss.backward()
    assert model[1].weight.grad is not None


def test_a_graph_shared_by_passes_is_an_error_that_helps():
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seed = nn.Parameter(torch.randn(CLASSES, 12).double())
            self.weight = None

        def forward(self, x):
            if self.weight is None:
                self.weight = self.seed.tanh()
            return x @ self.weight.T

    x, y = vectors()
    with pytest.raises(RuntimeError, match=r"FiniteDifference\(deferred=False\)"):
        criterion().run(Hyper(), x, y).loss.backward()
    criterion(deferred=False).run(Hyper(), x, y).loss.backward()


def test_a_kept_loss_keeps_no_more_than_where_passes_are_made_at_once():
    """That is the inputs, a leaf of the graph."""
    x, y = vectors(7)  # a shape of its own, to be found again
    model = smooth_mlp()

    def alive() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor and o.shape == x.shape for o in gc.get_objects())

    def kept(*, deferred: bool) -> int:
        before = alive()
        loss = criterion(deferred=deferred).run(model, x, y).loss
        loss.backward()
        return alive() - before

    assert kept(deferred=True) == kept(deferred=False)


def test_a_second_backward_without_the_graph_is_refused():
    x, y = vectors()
    loss = criterion().run(smooth_mlp(), x, y).loss
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("unit", ["margin", "tau"])
@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_tau_that_makes_no_step_is_refused(unit, tau):
    with pytest.raises(ValueError, match="must be above 0"):
        AverageMarginLoss(regularizer="linear", tau=tau, gradient=FiniteDifference(unit=unit))
    AverageMarginLoss(regularizer="linear", tau=tau)


@pytest.mark.parametrize("gradient", ["double_backward", FiniteDifference(unit="tau")])
@pytest.mark.parametrize("tau", [float("inf"), float("nan")])
def test_a_tau_that_is_no_number_is_refused(gradient, tau):
    with pytest.raises(ValueError, match="tau must be finite"):
        AverageMarginLoss(regularizer="linear", tau=tau, gradient=gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_fraction_is_taken_of_the_samples_that_count(reduction):
    """Two of eight are labelled, and both are chosen: the same as the whole batch."""
    x, y = vectors(8)
    y[2:] = -100
    model = smooth_mlp()
    whole = AverageMarginLoss(reduction=reduction).run(model, x, y)
    for _ in range(5):
        part = AverageMarginLoss(reduction=reduction, fraction=0.25).run(model, x, y)
        torch.testing.assert_close(part.loss, whole.loss)
        torch.testing.assert_close(part.margin, whole.margin, equal_nan=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient": "detached"},
        {"gradient": "finite_difference"},
        {"gradient": FiniteDifference("central", 0.3, "absolute", deferred=False)},
        {"gradient": "auto"},
        {"margin": "secant"},
        {"margin": Distance(form="envelope")},
        {"margin": "distance", "regularizer": "ramp"},
        {"margin": "additive", "regularizer": "ramp"},
        {"gradient": "finite_difference", "reduction": "sum"},
        {"gradient": "finite_difference", "reduction": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("ignored", ["all", "some"])
@pytest.mark.parametrize("norm", [False, True])
def test_anomaly_mode_finds_nothing_where_labels_are_ignored(settings, ignored, norm):
    x, y = vectors()
    y[: 6 if ignored == "all" else 4] = -100
    layers = [nn.Linear(12, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, CLASSES)]
    model = nn.Sequential(*layers).double()
    with torch.autograd.set_detect_anomaly(True):
        out = AverageMarginLoss(**{"regularizer": "softplus", **settings}).run(model, x, y)
        out.loss.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in gradients)
    if ignored == "all":
        assert not any(bool(g.any()) for g in gradients)
