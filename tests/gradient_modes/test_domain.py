"""Moved inputs outside of where a model is defined: data_range, or an error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES, smooth_mlp
from margin_ext import Additive, AverageMarginLoss, Distance, FiniteDifference, Secant
from margin_ext.gradient_modes.domain import refuse_nan_gradients

LOW, HIGH = 0.01, 0.6


class Domain(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        self.lowest, self.highest = math.inf, -math.inf

    def forward(self, x):
        self.lowest = min(self.lowest, float(x.detach().min()))
        self.highest = max(self.highest, float(x.detach().max()))
        return self.net(self.function(x))


FUNCTIONS = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "acosh": lambda x: (x + 1).acosh(),
    "power": lambda x: x**0.7,
    "log of a shifted value": lambda x: (x + 1e-3).log(),
}
# A long step, so that the range is left.
SCHEMES = [FiniteDifference(scheme, 3.0, "tau") for scheme in ("backward", "forward", "central")]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(8, 6) / 2 + 0.05, torch.arange(8) % CLASSES


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("deferred", [True, False])
def test_nan_at_moved_inputs_is_an_error(name, deferred):
    torch.manual_seed(0)
    model, (x, y) = Domain(FUNCTIONS[name]), data()
    mode = FiniteDifference("central", 3.0, "tau", deferred=deferred)
    with pytest.raises(RuntimeError, match=r"NaN at moved inputs.*FiniteDifference\(data_range="):
        AverageMarginLoss(gradient=mode).run(model, x, y).loss.backward()
    with pytest.raises(RuntimeError, match=r"NaN at moved inputs.*Secant\(data_range="):
        AverageMarginLoss(margin="secant").run(model, x, y)
    with pytest.raises(RuntimeError, match=r"NaN at moved inputs.*Distance\(data_range="):
        AverageMarginLoss(margin="distance").run(model, x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", SCHEMES, ids=str)
@pytest.mark.parametrize("deferred", [True, False])
def test_data_range_keeps_moved_inputs_inside(name, mode, deferred):
    torch.manual_seed(0)
    model, (x, y) = Domain(FUNCTIONS[name]), data()
    inside = FiniteDifference(mode.scheme, mode.step, mode.unit, deferred, (LOW, HIGH))
    AverageMarginLoss(gradient=inside).run(model, x, y).loss.backward()
    assert model.lowest >= LOW - 1e-6
    assert model.highest <= HIGH + 1e-6
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def gradient(model, mode, x, y, **settings):
    model.zero_grad()
    criterion = AverageMarginLoss(regularizer="softplus", gradient=mode, **settings)
    criterion.run(model, x, y).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("scheme", ["backward", "forward", "central"])
@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_a_range_that_is_not_met_changes_nothing(scheme, p):
    model, x = smooth_mlp(), torch.randn(6, 12).double()
    y = torch.arange(6) % CLASSES
    free = gradient(model, FiniteDifference(scheme, 0.1, "absolute"), x, y, p=p)
    wide = FiniteDifference(scheme, 0.1, "absolute", data_range=(-99.0, 99.0))
    torch.testing.assert_close(gradient(model, wide, x, y, p=p), free)


def test_a_step_that_is_cut_short_is_divided_by_the_way_left():
    """On a linear network every difference is the slope along its own way."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.5], [-1.0, 0.5]]))  # the gap's gradient is (2, 0)
        model.bias.zero_()
    x, y = torch.tensor([[0.4, 0.2], [0.9, 0.2]]).double(), torch.tensor([0, 0])
    exact = gradient(model, "double_backward", x, y)
    cut = FiniteDifference("backward", 5.0, "absolute", data_range=(0.0, 1.0))
    torch.testing.assert_close(gradient(model, cut, x, y), exact)
    both = FiniteDifference("central", 5.0, "absolute", data_range=(0.0, 1.0))
    torch.testing.assert_close(gradient(model, both, x, y), exact)


def test_samples_without_any_way_have_no_difference():
    model, x = smooth_mlp(), torch.zeros(6, 12).double()
    mode = FiniteDifference(data_range=(-1e-9, 1e-9))
    assert bool(gradient(model, mode, x, torch.arange(6) % CLASSES).isfinite().all())


def test_data_range_in_pixel_units_and_per_channel():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, CLASSES)).double()
    x, y = torch.rand(6, 3, 4).double(), torch.arange(6) % CLASSES
    low, high = torch.tensor([-0.1, 0.0, -0.2]), torch.tensor([1.0, 1.2, 1.0])
    mode = FiniteDifference("forward", 9.0, "absolute", data_range=(low, high))
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    gradient(model, mode, x, y, input_std=[0.5, 1.0, 2.0])
    moved = seen[-1]
    assert not torch.equal(moved, x)
    assert bool((moved >= low[:, None] - 1e-6).all())
    assert bool((moved <= high[:, None] + 1e-6).all())


def test_a_cut_step_of_samples_that_depend_on_each_other_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    mode = FiniteDifference(unit="tau", data_range=(LOW, HIGH))
    with pytest.raises(ValueError, match=r'data_range=.*take unit="margin" or batchnorm="running"'):
        AverageMarginLoss(gradient=mode).run(model, *data())
    AverageMarginLoss(gradient=FiniteDifference(data_range=(LOW, HIGH))).run(model, *data())


@pytest.mark.parametrize("data_range", [(1.0, 0.0), (0.0, math.inf), (0.0,), "ab"])
@pytest.mark.parametrize("mode", [FiniteDifference, Secant, Distance, Additive])
def test_bad_ranges_are_refused(mode, data_range):
    with pytest.raises(ValueError, match="data_range must be"):
        mode(data_range=data_range)


def test_nan_that_only_the_gradient_has():
    """torch.where hides what a square root is below 0, and not its slope."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x):
            scaled = x * self.scale
            return self.head(torch.where(scaled > 0, scaled.sqrt(), 0.0))

    torch.manual_seed(0)
    x, y = data()
    loss = (
        AverageMarginLoss(gradient=FiniteDifference("central", 3.0, "tau")).run(Root(), x, y).loss
    )
    assert bool(loss.isfinite())
    with pytest.raises(RuntimeError, match="gradient at moved inputs is NaN"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_overflow_in_16_bits_is_left_to_the_loss_scaler(dtype):
    refuse_nan_gradients([torch.tensor([math.nan], dtype=dtype)], torch.ones(()))


def test_nan_at_the_inputs_themselves_stays_visible_in_the_loss():
    model, (x, y) = Domain(torch.log), data()
    x[0] = -1.0
    assert bool(AverageMarginLoss(gradient="finite_difference").run(model, x, y).loss.isnan())


NAN = "inputs hold NaN, the first at index 3"
MARGINS = ["first_order", "logit_gap", "secant", "additive", "distance"]


@pytest.mark.parametrize("margin", MARGINS)
def test_nan_inputs_are_named(margin):
    """Also in validation, where there is no graph."""
    model, (x, y) = Domain(nn.Identity()), data()
    x[3, 1] = math.nan
    criterion = AverageMarginLoss(margin=margin)
    with pytest.raises(ValueError, match=NAN):
        criterion.run(model, x, y)
    with torch.no_grad(), pytest.raises(ValueError, match=NAN):
        criterion.run(model, x, y)


@pytest.mark.parametrize("margin", MARGINS[:2])
def test_nan_inputs_of_the_plain_call_are_named(margin):
    model, (x, y) = Domain(nn.Identity()), data()
    x[3, 1] = math.nan
    logits = model(x.requires_grad_())
    with pytest.raises(ValueError, match=NAN):
        AverageMarginLoss(margin=margin)(logits, y, x)


def test_a_model_may_know_what_to_do_with_nan():
    model, (x, y) = Domain(torch.nan_to_num), data()
    x[3, 1] = math.nan
    assert AverageMarginLoss().run(model, x, y).loss.isfinite()


RANGED = [
    {"margin": Secant(data_range=(0, 1))},
    {"margin": Secant(steps=1, data_range=(0, 1))},
    {"margin": Additive(noise=1.0, data_range=(0, 1))},
    {"margin": Distance(data_range=(0, 1))},
    {"gradient": FiniteDifference(data_range=(0, 1))},
    {"gradient": FiniteDifference("central", unit="tau", data_range=(0, 1))},
]


@pytest.mark.parametrize("options", RANGED, ids=str)
@pytest.mark.parametrize("wrong", [1.5, -0.5, math.nan])
def test_inputs_outside_of_the_stated_range_are_refused(options, wrong):
    """Otherwise the step would begin with a jump into the range."""
    model, (x, y) = Domain(nn.Identity()), data()
    AverageMarginLoss(**options).run(model, x, y)
    x[2, 4] = wrong
    with pytest.raises(ValueError, match="outside the stated data range"):
        AverageMarginLoss(**options).run(model, x, y)
