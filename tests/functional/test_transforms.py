"""torch.func transforms, create_graph and inference mode: served, or refused in words."""

from __future__ import annotations

import pytest
import torch
from problems import random_problem

from margin_ext import functional, reference
from margin_ext.regularizers import Regularizer

PHI = Regularizer.softplus(1)


def loss(logits, target, grad, ops=functional):
    return ops.average_margin_loss(logits, target, grad, regularizer=PHI).loss


def test_vmap_over_an_ensemble():
    """Models in the outer dimension: [models, B, C]."""
    members = [random_problem(3, 4, seed=seed) for seed in range(2)]
    stacked = [
        torch.stack([getattr(m, name) for m in members]) for name in ("logits", "target", "grad")
    ]
    found = torch.vmap(loss)(*stacked)
    torch.testing.assert_close(
        found, torch.stack([loss(m.logits, m.target, m.grad) for m in members])
    )
    gaps = torch.vmap(lambda z, y: functional.logit_gap(z, y).gap)(*stacked[:2])
    margins = torch.vmap(lambda a, g: functional.first_order_margin(a, g, p=3).margin)(
        gaps, stacked[2]
    )
    steps = torch.vmap(lambda g: functional.dual_direction(g, p=1))(stacked[2])
    for i, m in enumerate(members):
        gap = functional.logit_gap(m.logits, m.target).gap
        torch.testing.assert_close(gaps[i], gap)
        torch.testing.assert_close(
            margins[i], functional.first_order_margin(gap, m.grad, p=3).margin
        )
        torch.testing.assert_close(steps[i], functional.dual_direction(m.grad, p=1))


def test_per_sample_gradients():
    """vmap of grad, as per-sample gradient clipping uses it."""
    problem = random_problem(4, 3).requires_grad_()

    def one(z, y, g):
        return loss(z[None], y[None], g[None])

    found = torch.vmap(torch.func.grad(one, argnums=(0, 2)))(
        problem.logits.detach(), problem.target, problem.grad.detach()
    )
    each = functional.average_margin_loss(
        problem.logits, problem.target, problem.grad, regularizer=PHI, reduction="none"
    ).loss
    expected = torch.autograd.grad(each.sum(), (problem.logits, problem.grad))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


# Importing torch's own forward-mode rules warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")
def test_forward_mode_is_refused():
    problem = random_problem(3, 4)

    def margin(grad):
        return functional.first_order_margin(problem.logits[:, 0][:3], grad).margin

    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(margin, (problem.grad,), (problem.grad,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        margin(torch.autograd.forward_ad.make_dual(problem.grad, problem.grad))


def test_bad_labels_under_vmap_are_refused_by_torch():
    with pytest.raises((RuntimeError, IndexError)):
        torch.vmap(lambda z, y: functional.logit_gap(z, y).gap)(
            torch.randn(2, 3, 4), torch.full((2, 3), 4)
        )


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_last_layer_whose_backward_reads_its_output(create_graph):
    """tanh saves its output, so the graph of the input gradient leads back to the logits. The
    gradient under create_graph once counted that path twice.
    """
    inputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 3])

    def gradient(ops, create_graph):
        logits = torch.tanh(inputs @ weight)
        gap = ops.logit_gap(logits, target).gap
        (grad,) = torch.autograd.grad(gap.sum(), inputs, create_graph=True)
        value = loss(logits, target, grad, ops)
        return torch.autograd.grad(value, weight, create_graph=create_graph)[0]

    torch.testing.assert_close(gradient(functional, create_graph), gradient(reference, False))


def test_inference_mode_and_no_grad():
    problem = random_problem(3, 4).requires_grad_()
    expected = loss(problem.logits, problem.target, problem.grad)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            found = loss(problem.logits, problem.target, problem.grad)
            assert not found.requires_grad
            torch.testing.assert_close(found, expected.detach())
