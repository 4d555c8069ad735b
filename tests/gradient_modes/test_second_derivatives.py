"""A second derivative that would lack a part is an error, and auto takes differences."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss


class _NoGraph(torch.autograd.Function):
    """Its backward computes without a graph, as an adjoint solver's does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return upstream * (1 - x.tanh() ** 2)


class _Once(torch.autograd.Function):
    forward = _NoGraph.forward

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * (1 - x.tanh() ** 2)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, upstream):
        return upstream


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, upstream):
        return torch.zeros_like(upstream)


class Apply(nn.Module):
    def __init__(self, function, skip=False):
        super().__init__()
        self.function, self.skip = function, skip

    def forward(self, x):
        y = self.function(x)
        return x + y if self.skip else y


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return torch.cat([self.one(x).tanh(), _NoGraph.apply(self.other(x))], 1)


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.adjoint = nn.Linear(6, 6), nn.Linear(6, CLASSES), False

    def forward(self, x):
        h = self.body(x)
        return self.head(_NoGraph.apply(h) if self.adjoint else h.tanh())


def sequence(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, CLASSES)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % CLASSES


def conditional(x):
    with warnings.catch_warnings():  # its compiler reads .grad of what is not a leaf
        warnings.simplefilter("ignore")
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


LOST = {
    "in the middle": (lambda: sequence(Apply(_NoGraph.apply)), "lost in _NoGraph"),
    "at the head": (lambda: sequence(nn.Identity()).append(Apply(_NoGraph.apply)), "_NoGraph"),
    "at the inputs": (
        lambda: nn.Sequential(Apply(_NoGraph.apply), *sequence(nn.Tanh())),
        "_NoGraph",
    ),
    "behind a skip connection": (lambda: sequence(Apply(_NoGraph.apply, True)), "_NoGraph"),
    "in one of two branches": (
        lambda: nn.Sequential(Branches(), nn.Linear(12, CLASSES)).double(),
        "_NoGraph",
    ),
    "once_differentiable": (lambda: sequence(Apply(_Once.apply)), "_Once .*@once_differentiable"),
    "once_differentiable, skipped": (lambda: sequence(Apply(_Once.apply, True)), "_Once"),
    "torch.cond": (lambda: sequence(Apply(conditional)), "CondAutogradOp"),
    "hardsigmoid": (
        lambda: sequence(nn.Hardsigmoid()),
        "derivative for aten::hardsigmoid_backward is not implemented",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_a_part_that_would_be_missing_is_an_error_that_says_what_to_do(name):
    make, words = LOST[name]
    model, (x, y) = make(), data()
    with pytest.raises(RuntimeError, match=words) as caught:
        AverageMarginLoss().run(model, x, y)
    assert 'Take gradient="finite_difference" with criterion.run(' in str(caught.value)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=words):
        AverageMarginLoss()(model(x), y, x)


@pytest.mark.parametrize("name", LOST)
def test_auto_takes_differences(name):
    model, (x, y) = LOST[name][0](), data()
    criterion = AverageMarginLoss(gradient="auto")
    with pytest.warns(RuntimeWarning, match="goes on with finite_difference, because"):
        loss = criterion.run(model, x, y).loss
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters)
    wanted = AverageMarginLoss(gradient="finite_difference").run(model, x, y).loss
    torch.testing.assert_close(found, torch.autograd.grad(wanted, parameters))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        inner = checkpoint(lambda v: self.body(v).tanh(), x, use_reentrant=False)
        return self.head(inner)


def hooked() -> nn.Module:
    model = sequence(nn.Tanh())
    model[0].register_full_backward_hook(lambda *_: None)
    return model


HONEST = {
    "plain": lambda: sequence(nn.Tanh()),
    "checkpointed": lambda: Checkpointed().double(),
    "module hooks": hooked,
    "straight-through rounding": lambda: sequence(Apply(_StraightThrough.apply)),
    "a derivative of 0": lambda: sequence(Apply(_Zero.apply, True)),
    "constant everywhere": lambda: sequence(Apply(_Zero.apply)),
    "torch's rounding": lambda: sequence(Apply(torch.round, True)),
    "identity": lambda: nn.Sequential(nn.Linear(6, CLASSES)).double(),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_are_let_through(name):
    model, (x, y) = HONEST[name](), data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gradient in ("double_backward", "auto"):
            AverageMarginLoss(gradient=gradient).run(model, x, y).loss.backward()


def test_a_model_that_changes_later_is_noticed():
    model, (x, y) = Switched().double(), data()
    exact, auto = AverageMarginLoss(), AverageMarginLoss(gradient="auto")
    for criterion in (exact, auto):
        criterion.run(model, x, y).loss.backward()
    model.adjoint = True
    with pytest.raises(RuntimeError, match="_NoGraph"):
        exact.run(model, x, y)
    with pytest.warns(RuntimeWarning, match="_NoGraph"):
        auto.run(model, x, y).loss.backward()


def test_layers_that_change_are_looked_at_again():
    """The skip connection hides the operation from the look at every step."""
    model, (x, y) = sequence(nn.Tanh()), data()
    criterion = AverageMarginLoss()
    criterion.run(model, x, y).loss.backward()
    model[1] = Apply(_NoGraph.apply, True)
    with pytest.raises(RuntimeError, match="_NoGraph"):
        criterion.run(model, x, y)


def test_a_copy_of_the_criterion_looks_for_itself():
    model, (x, y) = sequence(nn.Tanh()), data()
    criterion = AverageMarginLoss()
    criterion.run(model, x, y)
    copied = copy.deepcopy(criterion)
    assert copied.gradient == criterion.gradient
    copied.run(model, x, y).loss.backward()


def test_a_detached_part_of_a_custom_backward_is_found_by_check():
    """Its gradient leads back to the cotangent, but not to what it was computed from."""

    class Partly(torch.autograd.Function):
        forward = _NoGraph.forward

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return upstream * (1 - x.detach().tanh() ** 2)

    model, (x, y) = sequence(Apply(Partly.apply)), data()
    criterion = AverageMarginLoss(regularizer="softplus")
    criterion.run(model, x, y).loss.backward()
    found = criterion.check(model, x, y)
    assert found.verdict == "wrong"
    assert "Partly" in str(found)
