"""criterion.check: a right gradient passes, and what is wrong is said in words."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES, images, smooth_cnn
from gradient_modes.test_automatic import Cube, attention
from margin_ext import AverageMarginLoss, FiniteDifference

SHORT = FiniteDifference("central", 1e-4, "tau")


class _NotTwice(torch.autograd.Function):
    """As a fused kernel's binding often is: its backward returns tensors without a graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return (3 * x.detach() ** 2) * upstream


class FusedCube(nn.Module):
    def forward(self, x):
        return _NotTwice.apply(x)


@pytest.mark.parametrize("batchnorm", ["batch", "running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_mode_agrees_and_nothing_is_left_changed(dtype, batchnorm):
    model, (x, y) = smooth_cnn(batchnorm=True, dropout=0.3).to(dtype), images()
    x = x.to(dtype)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    criterion = AverageMarginLoss(regularizer="softplus", batchnorm=batchnorm, every=5)
    found = criterion.check(model, x, y)
    assert found.agrees, str(found)
    assert found.margin_error < 1e-3
    assert found.cross_entropy_error < 1e-3
    assert "agrees within" in str(found)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_relu_networks_too():
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    x, y = torch.randn(8, 12), torch.randint(0, CLASSES, (8,))
    found = AverageMarginLoss(regularizer="softplus").check(model, x, y)
    assert found.agrees, str(found)


def test_short_differences_agree_on_smooth_networks():
    model, (x, y) = smooth_cnn(batchnorm=True), images()
    criterion = AverageMarginLoss(regularizer="softplus", gradient=SHORT)
    assert criterion.check(model, x, y).agrees


def test_long_differences_are_explained():
    criterion = AverageMarginLoss(
        regularizer="softplus",
        gradient=FiniteDifference("backward", 2.0, "absolute"),
    )
    found = criterion.check(smooth_cnn(), *images())
    assert found.verdict == "approximates"
    assert "so it is the length of the step" in str(found)
    relu = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    found = criterion.check(relu, torch.randn(8, 12), torch.randint(0, CLASSES, (8,)))
    assert found.verdict == "approximates"
    assert "piecewise linear" in str(found)


def test_detached_is_explained():
    criterion = AverageMarginLoss(regularizer="softplus", gradient="detached")
    found = criterion.check(smooth_cnn(), *images())
    assert found.verdict == "approximates"
    assert "it leaves out how the parameters move the gradient norm" in str(found)


def test_a_function_that_drops_out_in_silence_is_named():
    model = nn.Sequential(nn.Linear(12, 8), FusedCube(), nn.Linear(8, CLASSES)).double()
    x, y = torch.randn(6, 12).double(), torch.randint(0, CLASSES, (6,))
    found = AverageMarginLoss(regularizer="softplus").check(model, x, y)
    assert found.verdict == "wrong"
    assert found.cross_entropy_error < 1e-6
    assert "drops out of the second derivative" in str(found)
    assert "_NotTwice" in str(found)
    fallback = AverageMarginLoss(regularizer="softplus", gradient=SHORT)
    assert fallback.check(model, x, y).agrees


@pytest.mark.parametrize("make", [attention, Cube], ids=["attention", "once_differentiable"])
def test_an_error_is_reported_with_advice(make):
    if make is Cube:
        model = nn.Sequential(nn.Linear(12, 8), Cube(), nn.Linear(8, CLASSES)).double()
        x = torch.randn(4, 12).double()
    else:
        model, x = attention(), torch.randn(4, 1, 3, 8).double()
    found = AverageMarginLoss(regularizer="softplus").check(model, x, torch.tensor([0, 1, 2, 3]))
    assert found.verdict == "wrong"
    assert 'Use gradient="finite_difference", or "auto"' in str(found)


def test_a_wrong_first_derivative_is_told_apart():
    class Half(nn.Module):
        def forward(self, x):
            return 0.5 * x + 0.5 * x.detach()

    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), Half(), nn.Linear(8, CLASSES)).double()
    x, y = torch.randn(6, 12).double(), torch.randint(0, CLASSES, (6,))
    found = AverageMarginLoss().check(model, x, y)
    assert found.verdict == "wrong"
    assert "The gradient of the cross-entropy alone is off" in str(found)


def test_a_flat_regularizer_is_not_called_right():
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    x = torch.randn(6, 12).double()
    y = model(x).argmin(1)
    found = AverageMarginLoss().check(model, x, y)
    assert found.verdict == "unknown"
    assert "No sample of this batch" in str(found)


def test_models_that_draw_numbers_elsewhere_are_told():
    class Drift(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1 + 0.01 * self.calls)

    model = nn.Sequential(nn.Linear(12, 8), Drift(), nn.Linear(8, CLASSES)).double()
    x, y = torch.randn(6, 12).double(), torch.randint(0, CLASSES, (6,))
    assert "not the same when the model is run twice" in str(AverageMarginLoss().check(model, x, y))


def test_models_without_a_float64_copy_are_compared_as_they_are():
    class Single(nn.Module):
        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError("this kernel takes float32")
            return x.tanh()

    model = nn.Sequential(nn.Linear(12, 8), Single(), nn.Linear(8, CLASSES))
    x, y = torch.randn(6, 12), torch.randint(0, CLASSES, (6,))
    found = AverageMarginLoss(regularizer="softplus").check(model, x, y)
    assert found.agrees
    assert "There is no float64 copy" in str(found)


def test_what_cannot_be_checked_is_refused():
    x, y = images()
    with pytest.raises(TypeError, match="check needs a module"):
        AverageMarginLoss().check(smooth_cnn().forward, x, y)
    with pytest.raises(ValueError, match='margin="logit_gap" has none'):
        AverageMarginLoss(margin="logit_gap").check(smooth_cnn(), x, y)


class Fourier(nn.Module):
    def __init__(self, dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, dtype=dtype))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(
            torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.weight, n=12, dim=1).tanh()
        )


class ComplexLinear(nn.Module):
    """A complex layer, and the size of what it returns."""

    def __init__(self, dtype) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(12, 8, dtype=dtype), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(torch.complex(x, torch.zeros_like(x))).abs())


@pytest.mark.parametrize("make", [Fourier, ComplexLinear])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters(make, dtype):
    model = make(dtype)
    x, y = torch.randn(8, 12), torch.randint(0, CLASSES, (8,))
    if dtype == torch.complex128:
        model, x = model.double(), x.double()
    before = copy.deepcopy(model.state_dict())
    found = AverageMarginLoss(regularizer="softplus").check(model, x, y)
    assert found.agrees, str(found)
    assert found.margin_error < 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wrong = AverageMarginLoss(regularizer="softplus", gradient="detached").check(model, x, y)
    assert wrong.margin_error > 0.1
