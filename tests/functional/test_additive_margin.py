"""The additive margin in one launch: against its definition, float64, and numeric gradients."""

from __future__ import annotations

import math
from typing import Any

import accuracy
import pytest
import torch
from problems import NORMS, Problem, random_problem
from torch import Tensor, nn

from margin_ext import functional, reference

TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
]
SHAPES = [(16, 2, 1), (16, 9, 33), (16, 17, 129), (8, 100, 784), (3, 10, 32769)]


def plain_loss(problem: Problem, *, p: float, tau: float, mu: float, **settings: Any) -> Tensor:
    """The formula in plain PyTorch, in the types that it comes in."""
    q = {1: math.inf, 2: 2.0, math.inf: 1.0}.get(p, p / (p - 1) if 1 < p < math.inf else 1.0)
    norm = torch.linalg.vector_norm(problem.grad.flatten(1), q, dim=1)
    own = nn.functional.one_hot(problem.target, problem.logits.shape[1])
    lowered = problem.logits - tau * norm.unsqueeze(1) * own
    plain, moved = (
        nn.functional.cross_entropy(z, problem.target, reduction="none", **settings)
        for z in (problem.logits, lowered)
    )
    loss: Tensor = (plain + mu * (moved - plain)).mean()
    return loss


def results(loss: Tensor, problem: Problem) -> list[Tensor]:
    gradients = torch.autograd.grad(loss * 3, (problem.logits, problem.grad))
    return [t.detach() for t in (loss, *gradients)]


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [2, math.inf])
def test_as_accurate_as_plain_pytorch(types, shape, p) -> None:
    batch, classes, size = shape
    for mu, tau in ((1.0, 0.5), (0.4, 2.0)):
        problem = random_problem(batch, classes, (size,), *types).requires_grad_()
        wide = Problem(
            problem.logits.detach().double(), problem.target, problem.grad.detach().double()
        ).requires_grad_()
        settings = {"p": p, "tau": tau, "mu": mu}
        ours = functional.additive_margin_loss(
            problem.logits, problem.target, problem.grad, **settings
        ).loss
        accuracy.assert_as_accurate(
            ["loss", "grad_logits", "grad_grad"],
            results(ours, problem),
            results(plain_loss(problem, **settings), problem),
            results(plain_loss(wide, **settings), wide),
        )


def both(problem: Problem, **settings: Any) -> tuple[Any, Any]:
    """The compiled op's outputs and the reference's, each with its gradients."""
    found = []
    for ops in (functional, reference):
        mine = Problem(
            problem.logits.detach().clone(), problem.target, problem.grad.detach().clone()
        ).requires_grad_()
        out = ops.additive_margin_loss(mine.logits, mine.target, mine.grad, **settings)
        gradients = torch.autograd.grad(out.loss.sum(), (mine.logits, mine.grad))
        found.append([*out[:4], out.statistics.values_tensor, *gradients])
    return tuple(found)


def assert_same(ours: list[Tensor], right: list[Tensor]) -> None:
    # The statistics end with a factor of the op's own.
    ours[4], right[4] = ours[4][:-1], right[4][:-1]
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-5, atol=3e-6, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", NORMS)
def test_settings(p, weighted, smoothing, reduction) -> None:
    problem = random_problem(9, 6, (2, 7), torch.float32)
    target = problem.target.clone()
    target[3] = -100
    settings = {
        "p": p,
        "mu": 0.7,
        "tau": 1.5,
        "label_smoothing": smoothing,
        "weight": torch.tensor([0.5, 0.0, 1.0, 2.0, -0.3, 1.0]) if weighted else None,
        "input_std": (0.5, 2.0),
        "reduction": reduction,
    }
    assert_same(*both(Problem(problem.logits, target, problem.grad), **settings))


def test_zero_rows_masked_classes_and_saturated_logits() -> None:
    inf = math.inf
    logits = torch.tensor(
        [
            [1.0, 2.0, 0.5],  # a zero row of grad
            [1.0, -inf, -inf],  # all others are masked: no gradient
            [1.0, -inf, 0.5],  # one is
            [200.0, 0.0, -1.0],  # far beyond what exp holds
            [-200.0, 0.0, 1.0],
            [1e30, -1e30, 0.0],
            [0.5, 0.5, 0.5],  # ties
            [90.0, 0.0, 0.0],
        ]
    )
    grad = torch.randn(8, 5)
    grad[0] = 0
    grad[1] = 0
    grad[7] = 20.0 / math.sqrt(5)  # lowered by 100: from certain to certainly wrong
    problem = Problem(logits, torch.zeros(8, dtype=torch.int64), grad)
    ours, right = both(problem, tau=5.0, mu=1.0)
    assert_same(ours, right)
    assert ours[1][1] == inf
    assert bool((ours[5][1] == 0).all())
    assert bool(ours[6].isfinite().all())
    assert float(ours[6][7].norm()) > 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["label", "other", "grad"])
def test_nan_and_infinities_show(bad: float, where: str) -> None:
    problem = random_problem(4, 5, (7,), torch.float32)
    logits, grad = problem.logits.detach().clone(), problem.grad.detach().clone()
    if where == "grad":
        grad[1, 3] = bad
    else:
        own = int(problem.target[1])
        logits[1, own if where == "label" else (own + 1) % 5] = bad
    ours, right = both(Problem(logits, problem.target, grad), tau=1.0, mu=1.0, reduction="none")
    for mine, theirs in zip(ours[:4], right[:4], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-5, atol=3e-6, equal_nan=True)
    for mine, theirs in zip(ours[5:], right[5:], strict=True):
        torch.testing.assert_close(mine[[0, 2, 3]], theirs[[0, 2, 3]], rtol=3e-5, atol=3e-6)
    assert torch.equal(ours[5][1].isnan(), right[5][1].isnan())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradcheck(p, smoothing) -> None:
    problem = random_problem(5, 4, (6,), torch.float64).requires_grad_()
    settings = {"p": p, "tau": 0.8, "mu": 0.6, "label_smoothing": smoothing}

    def loss(logits: Tensor, grad: Tensor) -> Tensor:
        return functional.additive_margin_loss(logits, problem.target, grad, **settings).loss

    assert torch.autograd.gradcheck(loss, (problem.logits, problem.grad))
    if p in (1.5, 2, 3):
        assert torch.autograd.gradgradcheck(loss, (problem.logits, problem.grad))


def test_without_the_norm_it_is_the_cross_entropy() -> None:
    problem = random_problem(6, 5, (4,), torch.float32)
    expected = nn.functional.cross_entropy(problem.logits, problem.target)
    for grad, tau in ((torch.zeros(6, 4), 3.0), (problem.grad, 0.0)):
        loss = functional.additive_margin_loss(problem.logits, problem.target, grad, tau=tau).loss
        torch.testing.assert_close(loss, expected)


def test_one_op_computes_it() -> None:
    problem = random_problem(6, 5, (4,), torch.float32).requires_grad_()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        functional.additive_margin_loss(problem.logits, problem.target, problem.grad, tau=1.0)
    ours = [e.key for e in profile.key_averages() if e.key.startswith("margin_ext::")]
    assert ours == ["margin_ext::average_margin_loss"]


def test_the_op_refuses_what_it_cannot_mean() -> None:
    problem = random_problem(3, 4, (5,), torch.float32)
    settings = (2.0, 1e-6, 1.0, 5, 0.0, 1.0, 0.0, -100, 1, True, True)
    op = torch.ops.margin_ext.average_margin_loss
    for grad, nearest in ((None, None), (problem.grad, (problem.target + 1) % 4)):
        with pytest.raises(ValueError, match="needs grad and takes no nearest"):
            op(problem.logits, problem.target, grad, nearest, None, None, *settings)
