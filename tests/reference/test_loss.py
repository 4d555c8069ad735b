"""The loss against the paper's numbers and plain PyTorch, on every backend."""

from __future__ import annotations

import paper_oracles
import plain_torch
import pytest
import torch
from problems import NORMS, REGULARIZERS, random_problem

from margin_ext import reference
from margin_ext.regularizers import Regularizer


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_the_authors_loss(backend, tau):
    logits = backend.place(paper_oracles.LOGITS.clone()).requires_grad_()
    target = backend.place(paper_oracles.TARGET)
    out = backend.ops.average_margin_loss(
        logits, target, regularizer=Regularizer.ramp(-tau, 0), mu=0.1
    )
    assert out.loss.item() == pytest.approx(paper_oracles.AUTHORS_LOSS[tau], rel=1e-15)
    assert float(out.statistics.cross_entropy) == pytest.approx(
        paper_oracles.CROSS_ENTROPY, rel=1e-15
    )
    assert float(out.statistics.regularizer) == paper_oracles.AUTHORS_REGULARIZER[tau]
    assert out.gap.tolist() == paper_oracles.GAPS
    out.loss.backward()
    if tau == 2:
        expected = paper_oracles.AUTHORS_GRADIENT_OF_SAMPLE_1
        assert logits.grad[1].tolist() == pytest.approx(expected, rel=1e-13)


# Each option alone, then all together: they meet in the weighted mean.
OPTIONS = {
    "none": {},
    "weight": {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 0.25], dtype=torch.float64)},
    "ignore_index": {"ignore_index": 1},
    "label_smoothing": {"label_smoothing": 0.2},
}
OPTIONS["all"] = {k: v for options in OPTIONS.values() for k, v in options.items()}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("p", [None, *NORMS])
@pytest.mark.parametrize("kind", REGULARIZERS)
def test_loss_and_gradients_are_those_of_plain_pytorch(backend, kind, p, options):
    problem = random_problem(8, 5, (2, 3))
    phi = REGULARIZERS[kind]
    keywords = {
        k: backend.place(v) if isinstance(v, torch.Tensor) else v
        for k, v in OPTIONS[options].items()
    }

    def loss_and_gradients(compute):
        ours = problem.to(backend.device).requires_grad_()
        grad = None if p is None else ours.grad
        value = compute(ours.logits, ours.target, grad, p or 2)
        wanted = [t for t in (ours.logits, grad) if t is not None]
        return value, *torch.autograd.grad(value, wanted)

    found = loss_and_gradients(
        lambda logits, target, grad, p: (
            backend.ops.average_margin_loss(
                logits, target, grad, p=p, regularizer=phi, mu=0.7, **keywords
            ).loss
        )
    )
    expected = loss_and_gradients(
        lambda logits, target, grad, p: plain_torch.loss(
            logits, target, grad, p=p, kind=kind, lo=phi.lo, hi=phi.hi, mu=0.7, **keywords
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("p", [None, 2])
def test_reductions_agree(backend, p):
    problem = random_problem(6, 5).to(backend.device)
    weight = backend.place(torch.rand(5, dtype=torch.float64))
    target = problem.target.clone()
    target[2] = -100

    def loss(reduction):
        return backend.ops.average_margin_loss(
            problem.logits,
            target,
            None if p is None else problem.grad,
            regularizer=Regularizer.softplus(1),
            weight=weight,
            reduction=reduction,
        ).loss

    each = loss("none")
    assert each.shape == (6,)
    assert float(each[2]) == 0
    torch.testing.assert_close(loss("sum"), each.sum())
    counted = weight[target[target >= 0]].sum()
    torch.testing.assert_close(loss("mean"), each.sum() / counted)


@pytest.mark.parametrize("margin", ["logit_gap", "first_order"])
def test_empty_batch(backend, margin):
    """As torch's cross_entropy: the mean is NaN, the sum 0, and gradients are empty."""
    logits = backend.place(torch.zeros(0, 3)).requires_grad_()
    target = backend.place(torch.zeros(0, dtype=torch.int64))
    grad = None
    if margin == "first_order":
        grad = backend.place(torch.zeros(0, 2, 2)).requires_grad_()
    for reduction, expected in (("mean", torch.nan), ("sum", 0.0)):
        out = backend.ops.average_margin_loss(
            logits, target, grad, regularizer=Regularizer.linear(), reduction=reduction
        )
        torch.testing.assert_close(out.loss.cpu(), torch.tensor(expected), equal_nan=True)
        assert float(out.statistics.count) == 0
        assert out.statistics.average_margin.isnan()
        assert out.statistics.minimum_margin.isnan()
        out.loss.backward(retain_graph=True)
        out.loss.backward()
        assert logits.grad.shape == (0, 3)
    each = backend.ops.average_margin_loss(
        logits, target, grad, regularizer=Regularizer.linear(), reduction="none"
    ).loss
    assert each.shape == (0,)
    each.sum().backward()


def test_a_batch_of_ignored_samples(backend):
    """As torch's cross_entropy: the mean is NaN; nothing is pushed."""
    problem = random_problem(3, 4).to(backend.device).requires_grad_()
    target = torch.full_like(problem.target, -100)
    out = backend.ops.average_margin_loss(
        problem.logits, target, problem.grad, regularizer=Regularizer.linear(), reduction="sum"
    )
    assert float(out.loss.detach()) == 0
    assert float(out.statistics.count) == 0
    assert bool(out.margin.isnan().all())
    out.loss.backward()
    assert not problem.logits.grad.any()
    assert not problem.grad.grad.any()
    assert backend.ops.average_margin_loss(
        problem.logits, target, problem.grad, regularizer=Regularizer.linear()
    ).loss.isnan()


def test_a_nearest_class_other_than_the_runner_up(backend):
    problem = random_problem(5, 4).to(backend.device)
    order = problem.logits.argsort(dim=1)  # ascending; the last but one that is not the target
    lowest = torch.where(order[:, 0] == problem.target, order[:, 1], order[:, 0])
    out = backend.ops.average_margin_loss(
        problem.logits,
        problem.target,
        problem.grad,
        regularizer=Regularizer.linear(),
        nearest=lowest,
    )
    torch.testing.assert_close(
        out.gap, plain_torch.gap(problem.logits, problem.target, lowest), rtol=0, atol=1e-15
    )
    # A sample is right when it beats every class, not only the nearest one.
    right = plain_torch.gap(problem.logits, problem.target) > 0
    torch.testing.assert_close(out.statistics.accuracy, right.double().mean())


def test_reference_is_differentiable_in_every_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        problem = random_problem(3, 4, dtype=dtype).requires_grad_()
        out = reference.average_margin_loss(
            problem.logits, problem.target, problem.grad, regularizer=Regularizer.hinge(9)
        )
        assert out.loss.dtype == torch.float32
        out.loss.backward()
        assert problem.logits.grad.dtype == dtype
        assert problem.grad.grad.dtype == dtype
