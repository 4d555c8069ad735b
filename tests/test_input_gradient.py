"""The input gradient of the gap and the search for the nearest class."""

from __future__ import annotations

import math

import pytest
import torch

from margin_ext import linear_margin
from margin_ext.input_gradient import input_gradient, nearest_class
from margin_ext.loss_options import LossOptions

W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.5, 0.5]], dtype=torch.float64)


def linear(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs.clone().requires_grad_()
    return x, x @ W.T


def test_gradient_of_a_linear_classifier():
    x, logits = linear(torch.randn(3, 2, dtype=torch.float64))
    target, nearest = torch.tensor([0, 1, 2]), torch.tensor([1, 3, -1])
    grad = input_gradient(logits, x, target, nearest, create_graph=False)
    assert torch.equal(grad, torch.stack([W[0] - W[1], W[1] - W[3], torch.zeros(2).double()]))
    assert not grad.requires_grad


def test_with_a_graph_it_can_be_differentiated():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    logits = (x**2) @ W.T
    target, nearest = torch.tensor([0, 1, 2]), torch.tensor([1, 3, 0])
    grad = input_gradient(logits, x, target, nearest, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 2 * (W[target] - W[nearest]))


@pytest.mark.parametrize("p", [1, 2, math.inf, 3])
def test_all_classes_find_the_nearest_boundary_of_a_linear_classifier(p):
    inputs = torch.randn(50, 2, dtype=torch.float64)
    x, logits = linear(inputs)
    target = torch.randint(4, (50,))
    nearest = nearest_class(logits, x, target, "all", LossOptions(p=p))
    rows = torch.arange(50)
    gap = logits[rows, target] - logits[rows, nearest]
    q = {1: math.inf, 2: 2, math.inf: 1, 3: 1.5}[p]
    margin = gap / torch.linalg.vector_norm(W[target] - W[nearest], q, dim=1)
    torch.testing.assert_close(margin.detach(), linear_margin(W, None, inputs, target, p=p))
    runner_up = nearest_class(logits, x, target, "runner_up", LossOptions(p=p))
    assert not torch.equal(nearest, runner_up), "the rules make no difference here"


@pytest.mark.parametrize("classes", [1, 2, 3, 99, "all", "runner_up"])
def test_never_the_label_and_ignored_samples_have_none(classes):
    x, logits = linear(torch.randn(20, 2, dtype=torch.float64))
    target = torch.randint(4, (20,))
    target[::5] = -100
    nearest = nearest_class(logits, x, target, classes, LossOptions())
    assert (nearest[::5] == -1).all()
    counted = target >= 0
    assert (nearest[counted] != target[counted]).all()
    assert (nearest[counted] >= 0).all()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_masked_classes_do_not_make_a_label_its_own_rival(label):
    """Logits of -inf tie with the place that the search hides the label in."""
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.full((1, 4), -math.inf, dtype=torch.float64)
    mask[0, label] = 0
    nearest = nearest_class(x @ W.T + mask, x, torch.tensor([label]), "all", LossOptions())
    assert nearest.tolist() != [label]
    assert 0 <= int(nearest) < 4


@pytest.mark.parametrize("classes", [0, -1, "most", None])
def test_unknown_class_rules(classes):
    x, logits = linear(torch.randn(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="classes must be"):
        nearest_class(logits, x, torch.tensor([0, 1, 2]), classes, LossOptions())
