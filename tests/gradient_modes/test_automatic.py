"""The mode that finds out whether a model is twice differentiable."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from gradient_modes.networks import CLASSES, gradient, images, smooth_cnn
from margin_ext import AverageMarginLoss


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * upstream


class Cube(nn.Module):
    def forward(self, x):
        return _Cube.apply(x)


def attention() -> nn.Module:
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    return nn.Sequential(Attention(), nn.Flatten(), nn.Linear(24, CLASSES)).double()


def test_smooth_networks_take_double_backward():
    model, (x, y) = smooth_cnn(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found, _ = gradient(model, AverageMarginLoss(gradient="auto"), x, y)
    _, wanted, _ = gradient(model, AverageMarginLoss(), x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_it_falls_back_with_one_warning_that_names_the_cause():
    model = attention()
    x, y = torch.randn(4, 1, 3, 8).double(), torch.randint(0, CLASSES, (4,))
    criterion = AverageMarginLoss(gradient="auto")
    with pytest.warns(RuntimeWarning, match=r"finite_difference.*flash_attention.*backward") as got:
        out = criterion.run(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion.run(model, x, y)
        criterion.run(model.eval(), x, y)
    assert len(got) == 1
    assert got[0].filename == __file__
    found = torch.autograd.grad(out.loss, list(model.parameters()))
    wanted = AverageMarginLoss(gradient="finite_difference").run(model, x, y).loss
    torch.testing.assert_close(found, torch.autograd.grad(wanted, list(model.parameters())))


def test_double_backward_fails_in_words_of_torch_and_says_what_to_do():
    model = attention()
    x, y = torch.randn(4, 1, 3, 8).double(), torch.randint(0, CLASSES, (4,))
    words = r'flash_attention.*is not implemented\. Take gradient="finite_difference"'
    with pytest.raises(RuntimeError, match=words):
        AverageMarginLoss().run(model, x, y)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=words):
        AverageMarginLoss()(model(x), y, x)


@pytest.mark.parametrize("where", ["head", "middle"])
def test_functions_that_are_differentiable_once_do_not_drop_out_in_silence(where):
    """Before the head, what comes in is a constant, and autograd would not say a word."""
    layers = [nn.Linear(12, 8), Cube(), nn.Linear(8, CLASSES)]
    model = nn.Sequential(*layers, *([nn.Tanh()] if where == "middle" else [])).double()
    x, y = torch.randn(4, 12).double(), torch.randint(0, CLASSES, (4,))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        AverageMarginLoss().run(model, x, y).loss.backward()
    with pytest.warns(RuntimeWarning, match="finite_difference.*once_differentiable"):
        AverageMarginLoss(gradient="auto").run(model, x, y).loss.backward()


def test_a_function_falls_back_as_the_module_that_it_runs_does():
    model = attention()
    x, y = torch.randn(4, 1, 3, 8).double(), torch.randint(0, CLASSES, (4,))
    criterion = AverageMarginLoss(gradient="auto")
    with pytest.warns(RuntimeWarning, match=r"finite_difference.*flash_attention.*backward"):
        criterion.run(lambda inputs: 2 * model(inputs), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = criterion.run(lambda inputs: 2 * model(inputs), x, y)
    found = torch.autograd.grad(out.loss, list(model.parameters()))
    wanted = AverageMarginLoss(gradient="finite_difference").run(lambda v: 2 * model(v), x, y).loss
    torch.testing.assert_close(found, torch.autograd.grad(wanted, list(model.parameters())))


def test_each_model_behind_a_function_is_looked_at():
    first = nn.Sequential(nn.Flatten(), nn.Linear(24, CLASSES)).double()
    second = attention()
    x, y = torch.randn(4, 1, 3, 8).double(), torch.randint(0, CLASSES, (4,))
    criterion = AverageMarginLoss()
    criterion.run(lambda inputs: 2 * first(inputs), x, y)
    with pytest.raises(RuntimeError, match="is not implemented"):
        criterion.run(lambda inputs: 2 * second(inputs), x, y)


def test_the_fallback_moves_running_statistics_once():
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), Cube(), nn.Linear(8, CLASSES))
    x, y = torch.randn(4, 12), torch.randint(0, CLASSES, (4,))
    with pytest.warns(RuntimeWarning, match="once_differentiable"):
        AverageMarginLoss(gradient="auto").run(model, x, y).loss.backward()
    assert model[1].num_batches_tracked == 1


def test_other_errors_are_not_swallowed():
    model = nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1, 1)))
    with pytest.raises(ValueError, match=r"target must be \[B, d1, ...\] = \[1, 1, 1\]"):
        AverageMarginLoss(gradient="auto").run(model, torch.randn(1, 3), torch.tensor([0]))
