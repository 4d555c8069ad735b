"""Dual norm and direction: their defining properties, and torch's own norms and gradients."""

from __future__ import annotations

import math

import plain_torch
import pytest
import torch
from problems import NORMS

from margin_ext import reference
from margin_ext.reference import dual_direction, dual_norm


def p_norm(x: torch.Tensor, p: float) -> torch.Tensor:
    return torch.linalg.vector_norm(x.flatten(1), p, dim=1)


@pytest.mark.parametrize("p", [*NORMS, 1.01, 100])
def test_norm_is_torchs(p):
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = p_norm(x, plain_torch.dual_exponent(p))
    torch.testing.assert_close(dual_norm(x, p=p), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [*NORMS, 1.01, 100])
def test_direction_has_unit_length_and_attains_the_norm(p):
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    v = dual_direction(x, p=p)
    torch.testing.assert_close(p_norm(v, p), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close((v * x).flatten(1).sum(dim=1), dual_norm(x, p=p))


@pytest.mark.parametrize("p", NORMS)
def test_no_other_direction_rises_more(p):
    x = torch.randn(1, 6, dtype=torch.float64)
    others = torch.randn(2000, 6, dtype=torch.float64)
    others /= p_norm(others, p).unsqueeze(1)
    assert float((others * x).sum(dim=1).max()) <= float(dual_norm(x, p=p))


@pytest.mark.parametrize("p", NORMS)
def test_gradient_of_the_norm_is_the_direction(p):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(dual_norm(x, p=p).sum(), x)
    (theirs,) = torch.autograd.grad(p_norm(x, plain_torch.dual_exponent(p)).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(ours, dual_direction(x.detach(), p=p), rtol=1e-12, atol=1e-15)


def test_ties_share_the_step_as_in_torch():
    x = torch.tensor([[2.0, -2.0, 1.0, 2.0], [0.0, 3.0, 1.0, 0.0]], requires_grad=True)
    direction = dual_direction(x.detach(), p=1)
    torch.testing.assert_close(
        direction, torch.tensor([[1 / 3, -1 / 3, 0, 1 / 3], [0.0, 1.0, 0.0, 0.0]])
    )
    (theirs,) = torch.autograd.grad(p_norm(x, math.inf).sum(), x)
    torch.testing.assert_close(direction, theirs)


@pytest.mark.parametrize("p", NORMS)
def test_a_zero_gradient_has_no_direction_and_no_nan(p):
    x = torch.zeros(2, 3, requires_grad=True)
    norm = dual_norm(x, p=p)
    assert norm.tolist() == [0, 0]
    (first,) = torch.autograd.grad(norm.sum(), x, create_graph=True)
    assert torch.equal(first, torch.zeros(2, 3))
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, torch.zeros(2, 3))


@pytest.mark.parametrize("p", [1.001, 1.5, 3, 50])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_general_norms_neither_underflow_nor_overflow(p, size):
    x = torch.randn(3, 8)
    scaled = dual_norm(x * size, p=p)
    torch.testing.assert_close(scaled / size, dual_norm(x, p=p), rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", NORMS)
def test_input_std_measures_in_pixels(p):
    """With x_pixel = x * std the gradient by pixels is grad / std; a step of pixel length 1 along
    it is v / std in the loader's units.
    """
    std = [0.5, 2.0, 0.25]
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    scale = 1 / torch.tensor(std, dtype=torch.float64).reshape(1, 3, 1, 1)
    torch.testing.assert_close(dual_norm(x, p=p, input_std=std), dual_norm(x * scale, p=p))
    step = dual_direction(x, p=p, input_std=std)
    torch.testing.assert_close(step, dual_direction(x * scale, p=p) * scale)
    torch.testing.assert_close(dual_norm(x, p=p, input_std=2.0), dual_norm(x, p=p) / 2)


def test_base_and_factor():
    x, base = torch.randn(2, 3), torch.randn(2, 3)
    factor = torch.tensor([2.0, -1.0])
    stepped = reference.dual_direction(x, factor, p=2, base=base)
    torch.testing.assert_close(stepped, base + factor[:, None] * dual_direction(x, p=2))
