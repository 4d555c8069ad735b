"""NaN, infinities, ties, zeros and sizes at the ends of the types: what is broken shows in its own
sample, and touches no other.
"""

from __future__ import annotations

import math

import pytest
import torch
from backends import REFERENCE
from problems import NORMS, REGULARIZERS, Problem, random_problem

from margin_ext.regularizers import Regularizer

POISONS = [math.nan, math.inf, -math.inf]
BAD = 1  # the sample that is broken


def poisoned(place: str, value: float) -> Problem:
    problem = random_problem(4, 5, (7,), torch.float32, seed=3)
    logits, label = problem.logits[BAD], int(problem.target[BAD])
    order = [k for k in logits.argsort(descending=True).tolist() if k != label]
    if place == "target":
        logits[label] = value
    elif place == "runner_up":
        logits[order[0]] = value
    elif place == "last_class":
        logits[order[-1]] = value
    elif place == "all_logits":
        logits[:] = value
    elif place == "one_gradient":
        problem.grad[BAD, 3] = value
    else:
        problem.grad[BAD] = value
    return problem


def results(backend, problem: Problem, **options) -> dict[str, torch.Tensor]:
    """Everything, one row a sample."""
    problem = problem.to(backend.device).requires_grad_()
    out = backend.ops.average_margin_loss(
        problem.logits, problem.target, problem.grad, reduction="none", **options
    )
    gradients = torch.autograd.grad(out.loss.sum(), (problem.logits, problem.grad))
    return {
        "loss": out.loss.detach().cpu(),
        "margin": out.margin.cpu(),
        "gap": out.gap.cpu(),
        "norm": out.norm.cpu(),
        "grad_logits": gradients[0].cpu(),
        "grad_grad": gradients[1].cpu(),
    }


PLACES = ["target", "runner_up", "last_class", "all_logits", "one_gradient", "all_gradients"]


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("p", NORMS)
def test_a_broken_sample_breaks_nothing_else(compiled, p, place, value):
    phi = Regularizer.softplus(1)
    unharmed = random_problem(4, 5, (7,), torch.float32, seed=3)
    healthy = results(compiled, unharmed, regularizer=phi, p=p)
    found = results(compiled, poisoned(place, value), regularizer=phi, p=p)
    others = [i for i in range(4) if i != BAD]
    for name, tensor in found.items():
        assert torch.equal(tensor[others], healthy[name][others]), name


# A regularizer that is cut off, one that saturates under label smoothing, one that overflows.
@pytest.mark.parametrize(
    ("kind", "label_smoothing"), [("ramp", 0), ("softplus", 0.1), ("exponential", 0)]
)
@pytest.mark.parametrize("value", [*POISONS, 3e38, 1e-45, -0.0])
@pytest.mark.parametrize("place", PLACES)
def test_a_broken_sample_shows_as_in_the_reference(compiled, kind, place, value, label_smoothing):
    """The same NaN and infinities. (Not in the gradient by grad of that sample: where the loss is
    NaN already, the kernels may write 0 for NaN there.)
    """
    for p in NORMS:
        ours, theirs = (
            results(
                backend,
                poisoned(place, value),
                regularizer=REGULARIZERS[kind],
                p=p,
                label_smoothing=label_smoothing,
            )
            for backend in (compiled, REFERENCE)
        )
        for name in ("loss", "margin", "gap", "norm", "grad_logits"):
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=2e-5, atol=1e-6, equal_nan=True, msg=f"{name}, {p=}"
            )


@pytest.mark.parametrize("place", ["target", "runner_up", "one_gradient"])
@pytest.mark.parametrize("p", NORMS)
def test_a_nan_reaches_loss_and_statistics(backend, p, place):
    problem = poisoned(place, math.nan).to(backend.device)
    for reduction in ("mean", "sum"):
        out = backend.ops.average_margin_loss(
            problem.logits,
            problem.target,
            problem.grad,
            p=p,
            regularizer=Regularizer.ramp(0, 1),
            reduction=reduction,
        )
        assert out.loss.isnan()
        assert out.statistics.minimum_margin.isnan()
        assert out.statistics.average_margin.isnan()
        assert float(out.statistics.count) == 4


@pytest.mark.parametrize("kind", ["ramp", "hinge", "softplus", "exponential"])
def test_masked_classes(backend, kind):
    """Where all classes but the label are masked with -inf the loss is 0 or so, and nothing pushes:
    the gradients once were NaN under a finite loss.
    """
    problem = random_problem(3, 4, (5,), torch.float32)
    problem.logits[0] = -math.inf
    problem.logits[0, problem.target[0]] = 1
    problem.logits[1, (problem.target[1] + 1) % 4] = -math.inf
    found = results(backend, problem, regularizer=REGULARIZERS[kind])
    assert found["gap"][0] == math.inf
    assert found["loss"].isfinite().all()
    assert not found["grad_grad"][0].any()
    for name in ("grad_logits", "grad_grad"):
        assert found[name].isfinite().all(), name
    gap = backend.place(found["gap"]).requires_grad_()
    grad = backend.place(problem.grad).requires_grad_()
    margin = backend.ops.first_order_margin(gap, grad).margin
    torch.where(margin.isinf(), 0.0, margin).sum().backward()
    assert grad.grad.isfinite().all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", REGULARIZERS)
def test_zero_gradients(backend, kind, p):
    """eps is the norm then and nothing pushes the gradient, even where exp(-m / tau) overflows."""
    problem = random_problem(4, 3, (9,), torch.float32)
    problem.grad[0] = 0
    problem.grad[1] = -0.0
    problem.grad[2] = 1e-30
    found = results(backend, problem, regularizer=REGULARIZERS[kind], p=p, eps=0.25)
    torch.testing.assert_close(found["margin"][:3], found["gap"][:3] / 0.25)
    assert not found["grad_grad"][:3].any()
    found = results(backend, problem, regularizer=REGULARIZERS[kind], p=p)
    assert not found["grad_grad"][:3].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
def test_direction_of_a_zero_gradient_is_zero(backend, p, dtype):
    grad = backend.place(torch.zeros(2, 37, dtype=dtype))
    grad[1, ::2] = -0.0
    step = backend.ops.dual_direction(grad, p=p)
    assert step.dtype == dtype
    assert not step.any()


@pytest.mark.parametrize("size", [1, 8, 33, 32769])
def test_ties_of_the_largest_gradient_share_the_step(backend, size):
    """p = 1: v is +-1 / count where |g| is largest, however the ties lie across vectors and
    chunks.
    """
    grad = torch.full((3, size), 0.5)
    grad[0, 1::2] *= -1  # all tie, both signs
    grad[1, size // 2] = -2  # one alone
    grad[2, [0, -1]] = 3  # first and last
    step = backend.ops.dual_direction(backend.place(grad), p=1).cpu()
    expected = torch.zeros_like(grad)
    expected[0] = grad[0].sign() / size
    expected[1, size // 2] = -1
    expected[2, [0, -1]] = 1 / len({0, size - 1})
    torch.testing.assert_close(step, expected)


@pytest.mark.parametrize("classes", [2, 3, 8, 17, 1000])
def test_ties_of_logits(compiled, classes):
    """Everywhere, at the ends, and between -0 and 0: the runner-up is the lowest tied class."""
    logits = torch.zeros(4, classes)
    logits[0, ::2] = -0.0
    logits[1, -1] = logits[1, 0] = 1
    logits[2] = -math.inf
    logits[3] = math.inf
    for label in {0, 1, classes - 1}:
        target = torch.full((4,), label)
        ours = compiled.ops.logit_gap(compiled.place(logits), compiled.place(target))
        theirs = REFERENCE.ops.logit_gap(logits, target)
        assert torch.equal(ours.runner_up.cpu(), theirs.runner_up)
        torch.testing.assert_close(ours.gap.cpu(), theirs.gap, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e18])
@pytest.mark.parametrize("p", NORMS)
def test_magnitudes_far_from_one(backend, p, scale):
    """Squares of these are still within float32; m and dm/dg scale by powers of 1 / scale."""
    problem = random_problem(4, 5, (40,), torch.float32)
    gap = backend.place(torch.randn(4))

    def margin(grad, eps):
        grad = backend.place(grad).requires_grad_()
        value = backend.ops.first_order_margin(gap, grad, p=p, eps=eps).margin
        return value.detach(), torch.autograd.grad(value.sum(), grad)[0]

    value, slope = margin(problem.grad * scale, 1e-30)
    expected_value, expected_slope = margin(problem.grad, 1e-30)
    torch.testing.assert_close(value * scale, expected_value, rtol=1e-5, atol=0)
    if scale <= 1e6:  # beyond it the slope is under float32's smallest numbers
        torch.testing.assert_close(slope * scale * scale, expected_slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spread", [50, 100, 1000, 1e5, 3e38])
def test_saturated_logits(backend, spread):
    """A confident network: the cross-entropy is 0 or the gap, without NaN."""
    logits = torch.tensor([[spread, 0.0, 0.0], [0.0, spread, 0.0]])
    problem = Problem(logits, torch.tensor([0, 0]), torch.ones(2, 3))
    found = results(backend, problem, regularizer=Regularizer.ramp(0, 1))
    assert found["loss"].tolist() == pytest.approx([0.0, spread + 1], rel=1e-6, abs=1e-6)
    torch.testing.assert_close(
        found["grad_logits"],
        torch.tensor([[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]),
        rtol=0,
        atol=1e-6,
    )
