"""Both gradients against numeric ones, in float64, to the second order."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from backends import REFERENCE, Backend
from problems import NORMS, REGULARIZERS, Problem, smooth_problem
from torch.autograd import gradcheck, gradgradcheck

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
OPTIONS = {
    "plain": {},
    "weight": {"weight": WEIGHT},
    "ignore_index": {"ignore_index": 2},
    "label_smoothing": {"label_smoothing": 0.2},
    "input_std": {"input_std": [0.9, 1.1, 1.2, 0.8]},
    "nearest": {"nearest": True},
}


@cache
def problem_for(kind: str, p: float) -> Problem:
    return smooth_problem(REGULARIZERS[kind], p)


def check(backend: Backend, compute, *inputs, fast_mode: bool = True) -> None:
    """gradcheck runs the kernels' own gradients; the second order is the reference's graph.

    It goes backward twice: gradients that were stored are scaled the first time, and recomputed the
    second, which rounds differently.
    """
    placed = tuple(backend.place(t.detach()).requires_grad_() for t in inputs)
    assert gradcheck(compute, placed, nondet_tol=1e-15)
    assert gradgradcheck(compute, placed, fast_mode=fast_mode)


def loss_of(backend: Backend, problem: Problem, kind, p, reduction="mean", **options):
    target = backend.place(problem.target)
    if "nearest" in options:
        lowest = problem.logits.argsort(dim=1)
        nearest = torch.where(lowest[:, 0] == problem.target, lowest[:, 1], lowest[:, 0])
        options = {**options, "nearest": backend.place(nearest)}
    if "weight" in options:
        options = {**options, "weight": backend.place(options["weight"])}

    def compute(logits, grad=None):
        return backend.ops.average_margin_loss(
            logits,
            target,
            grad,
            p=p,
            mu=0.7,
            regularizer=REGULARIZERS[kind],
            reduction=reduction,
            **options,
        ).loss

    return compute


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", REGULARIZERS)
def test_loss_over_norms_and_regularizers(backend, kind, p):
    problem = problem_for(kind, p)
    check(backend, loss_of(backend, problem, kind, p), problem.logits, problem.grad)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("p", NORMS)
def test_loss_over_options(backend, p, options):
    """With the smooth regularizer: options move margins, and must not move them onto a kink."""
    problem = problem_for("softplus", p)
    compute = loss_of(backend, problem, "softplus", p, **OPTIONS[options])
    check(backend, compute, problem.logits, problem.grad)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_loss_over_reductions(backend, reduction, options):
    problem = problem_for("softplus", 2)
    compute = loss_of(backend, problem, "softplus", 2, reduction, **OPTIONS[options])
    check(backend, compute, problem.logits, problem.grad)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", REGULARIZERS)
def test_loss_of_the_gap(backend, kind, reduction):
    problem = problem_for(kind, 2)
    check(backend, loss_of(backend, problem, kind, 2, reduction), problem.logits)


@pytest.mark.parametrize("input_std", [None, [0.5, 2.0, 1.5, 0.8]])
@pytest.mark.parametrize("p", NORMS)
def test_first_order_margin(backend, p, input_std):
    problem = problem_for("linear", p)
    gap = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    check(
        backend,
        lambda gap, grad: backend.ops.first_order_margin(gap, grad, p=p, input_std=input_std),
        gap,
        problem.grad,
    )


@pytest.mark.parametrize("input_std", [None, [0.5, 2.0, 1.5, 0.8]])
@pytest.mark.parametrize("p", NORMS)
def test_dual_direction(backend, p, input_std):
    problem = problem_for("linear", p)
    factor = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    check(
        backend,
        lambda grad, factor, base: backend.ops.dual_direction(
            grad, factor, p=p, base=base, input_std=input_std
        ),
        problem.grad,
        factor,
        torch.randn_like(problem.grad),
        fast_mode=p not in (1, float("inf")),  # v is constant there: fast mode stumbles over None
    )


def test_logit_gap(backend):
    problem = problem_for("linear", 2)
    target = backend.place(problem.target)
    check(backend, lambda z: backend.ops.logit_gap(z, target).gap, problem.logits)


@pytest.mark.parametrize("p", NORMS)
def test_second_order_agrees_with_the_reference(compiled, p):
    """A gradient penalty on our loss, beyond what gradgradcheck's random direction sees."""
    problem = problem_for("softplus", p)

    def second(backend):
        ours = problem.to(backend.device).requires_grad_()
        loss = loss_of(backend, problem, "softplus", p)(ours.logits, ours.grad)
        first = torch.autograd.grad(loss, (ours.logits, ours.grad), create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return [t.cpu() for t in torch.autograd.grad(penalty, (ours.logits, ours.grad))]

    for a, b in zip(second(compiled), second(REFERENCE), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
