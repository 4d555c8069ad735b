"""Backward passes as training loops run them. The forward stores finished gradients, which the
first backward scales in place and gives away: nothing may ever see them twice.
"""

from __future__ import annotations

import pytest
import torch
from backends import REFERENCE
from problems import NORMS, Problem, random_problem

from margin_ext.regularizers import Regularizer

PHI = Regularizer.softplus(1)
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Weights, ignored samples and a mean: the stored gradients need scaling even where upstream is 1.
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])


def loss(backend, problem: Problem, reduction="mean", **options):
    keywords = {"weight": backend.place(WEIGHT), "ignore_index": 1, **options}
    return backend.ops.average_margin_loss(
        problem.logits,
        problem.target,
        problem.grad,
        regularizer=PHI,
        reduction=reduction,
        **keywords,
    ).loss


def make(backend, dtype=torch.float64, seed=0) -> Problem:
    return random_problem(8, 5, (3, 11), dtype, seed=seed).to(backend.device).requires_grad_()


def expected(problem: Problem, upstream, reduction="mean"):
    """The reference's gradients, in float64, times upstream."""
    wide = Problem(
        problem.logits.detach().cpu().double().requires_grad_(),
        problem.target.cpu(),
        problem.grad.detach().cpu().double().requires_grad_(),
    )
    value = loss(REFERENCE, wide, reduction)
    return torch.autograd.grad(value, (wide.logits, wide.grad), upstream)


def assert_gradients(found, right, dtype):
    """To a few roundings of the type, relative to the largest number."""
    for ours, theirs in zip(found, right, strict=True):
        assert ours.dtype == dtype
        tolerance = 4 * max(torch.finfo(dtype).eps, 1e-15) * float(theirs.abs().max())
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("upstreams", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (0.25, -2.0), (0.0, 1)])
def test_twice_with_different_upstreams(compiled, upstreams, dtype, reduction):
    problem = make(compiled, dtype)
    value = loss(compiled, problem, reduction)
    inputs = (problem.logits, problem.grad)
    for upstream in (*upstreams, upstreams[0]):
        u = torch.tensor(upstream, dtype=value.dtype, device=value.device)
        found = torch.autograd.grad(value, inputs, u, retain_graph=True)
        right = expected(problem, torch.tensor(upstream, dtype=torch.float64), reduction)
        assert_gradients(found, right, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_random_upstreams_of_each_sample(compiled, dtype):
    problem = make(compiled, dtype)
    value = loss(compiled, problem, "none")
    for _ in range(2):
        upstream = torch.randn(8, dtype=value.dtype)
        found = torch.autograd.grad(
            value, (problem.logits, problem.grad), compiled.place(upstream), retain_graph=True
        )
        assert_gradients(found, expected(problem, upstream.double(), "none"), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_accumulation_into_grad_buffers(compiled, dtype):
    """Micro-batches of a loop without zero_grad, each backward twice: .grad is the sum, and what
    an earlier step left in it is not written over by a later one.
    """
    problem = make(compiled, dtype)
    total = None
    for factor in (1.0, 0.5, 1.0):
        value = loss(compiled, problem) * factor
        value.backward(retain_graph=True)
        value.backward()
        one = expected(problem, torch.tensor(2 * factor, dtype=torch.float64))
        total = one if total is None else [a + b for a, b in zip(total, one, strict=True)]
        assert_gradients((problem.logits.grad, problem.grad.grad), total, dtype)


def test_gradients_that_are_kept_do_not_change(compiled):
    problem = make(compiled)
    value = loss(compiled, problem)
    inputs = (problem.logits, problem.grad)
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    copies = [g.clone() for g in first]
    torch.autograd.grad(value * 5, inputs, retain_graph=True)
    (value * 7).backward()
    for kept, copy in zip(first, copies, strict=True):
        assert torch.equal(kept, copy)
    for tensor, kept in zip(inputs, first, strict=True):
        assert tensor.grad.data_ptr() != kept.data_ptr()
        tensor.grad.zero_()
        assert kept.any()


def test_two_losses_of_the_same_tensors_are_independent(compiled):
    problem = make(compiled)
    (loss(compiled, problem) + 2 * loss(compiled, problem)).backward()
    right = expected(problem, torch.tensor(3.0, dtype=torch.float64))
    assert_gradients((problem.logits.grad, problem.grad.grad), right, torch.float64)


def test_a_second_backward_without_retain_graph_is_refused(compiled):
    value = loss(compiled, make(compiled))
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


@pytest.mark.parametrize("which", ["logits", "grad"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_one_of_both_requires_a_gradient(compiled, which, dtype, reduction):
    """Only grad: frozen logits. Only logits: the detached mode."""
    problem = make(compiled, dtype)
    upstream = torch.tensor(2.0, dtype=torch.float64)
    both = expected(problem, upstream, "sum" if reduction == "none" else reduction)
    right = both[0] if which == "logits" else both[1]
    if which == "logits":
        problem.grad = problem.grad.detach()
    else:
        problem.logits = problem.logits.detach()
    value = loss(compiled, problem, reduction)
    for _ in range(2):
        (found,) = torch.autograd.grad(value.sum() * 2, getattr(problem, which), retain_graph=True)
        assert_gradients([found], [right], dtype)


def test_a_loss_scale_keeps_float16_gradients_from_underflowing(compiled):
    """Gradients of 1e-6 / batch lie about float16's smallest number until the scale is on them:
    so it must be applied before they are rounded.
    """
    batch, size, scale = 64, 4096, 65536.0
    problem = random_problem(batch, 5, (size,), torch.float16).to(compiled.device).requires_grad_()

    def gradients(ours, ops, scale):
        out = ops.average_margin_loss(ours.logits, ours.target, ours.grad, regularizer=PHI)
        return torch.autograd.grad(out.loss * scale, (ours.logits, ours.grad))

    found = gradients(problem, compiled.ops, scale)
    wide = Problem(problem.logits.detach().double(), problem.target, problem.grad.detach().double())
    right = gradients(wide.requires_grad_(), REFERENCE.ops, 1.0)
    for ours, theirs in zip(found, right, strict=True):
        unscaled = ours.double() / scale
        error = (unscaled - theirs).norm() / theirs.norm()
        assert float(error) < 1e-3
    lost = (right[1].half().double() - right[1]).norm() / right[1].norm()
    assert float(lost) > 0.1, "float16 holds these without a scale: the test tests nothing"


@pytest.mark.parametrize("dtype", TYPES)
def test_without_a_graph(compiled, dtype):
    problem = make(compiled, dtype)
    with torch.no_grad():
        value = loss(compiled, problem)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(compiled, problem).detach(), rtol=0, atol=0)


def test_inputs_are_never_written_to(compiled):
    problem = make(compiled, torch.float32)
    before = [t.detach().clone() for t in (problem.logits, problem.grad)]
    value = loss(compiled, problem)
    value.backward(torch.tensor(5.0, device=value.device), retain_graph=True)
    value.backward()
    assert torch.equal(problem.logits, before[0])
    assert torch.equal(problem.grad, before[1])


@pytest.mark.parametrize("p", NORMS)
def test_margin_and_norm_both_differentiated(compiled, p):
    """Any function of both outputs, with a random upstream for each, and the same twice."""
    problem = make(compiled)
    gap = compiled.place(torch.randn(8, dtype=torch.float64)).requires_grad_()
    upstream = [compiled.place(torch.randn(8, dtype=torch.float64)) for _ in range(2)]

    def gradients(ops):
        outputs = ops.first_order_margin(gap, problem.grad, p=p)
        once = torch.autograd.grad(outputs, (gap, problem.grad), upstream, retain_graph=True)
        again = torch.autograd.grad(outputs, (gap, problem.grad), upstream)
        for a, b in zip(once, again, strict=True):
            assert torch.equal(a, b)
        alone = torch.autograd.grad(
            ops.first_order_margin(gap, problem.grad, p=p).norm.sum(), problem.grad
        )
        return *once, *alone

    for a, b in zip(gradients(compiled.ops), gradients(REFERENCE.ops), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_only_the_loss_is_differentiable(backend):
    problem = make(backend)
    out = backend.ops.average_margin_loss(
        problem.logits, problem.target, problem.grad, regularizer=PHI
    )
    assert out.loss.requires_grad
    for tensor in (out.margin, out.gap, out.norm, out.statistics.values_tensor):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
