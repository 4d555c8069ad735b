"""Errors of ours are at most twice those of the same formula in plain PyTorch and the same types,
both against float64.
"""

from __future__ import annotations

import accuracy
import plain_torch
import pytest
import torch
from problems import NORMS, Problem, random_problem
from torch import Tensor

from margin_ext.regularizers import Regularizer

# (logits, grad). Mixed types as autocast gives them: logits of the last layer in 16 bits, the
# input gradient in float32; and the other way round.
TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
]
# (batch, classes, D). D: 1; around the vector widths of 4, 8 and 16 numbers and four vectors in
# flight (31, 33, 63, 65); usual image sizes; around the chunk of 32,768 in which rows are reduced,
# and three chunks and a bit. C: the least; around a vector; many.
SHAPES = [
    (16, 2, 1),
    (16, 3, 2),
    (16, 7, 5),
    (16, 8, 31),
    (16, 9, 33),
    (16, 15, 63),
    (16, 16, 65),
    (16, 17, 129),
    (32, 10, 784),
    (8, 100, 3072),
    (8, 1000, 257),
    (3, 10, 32767),
    (3, 10, 32769),
    (1, 10, 100_003),
]


def cases():
    """Every type at every size under p = 2; every norm at the sizes that use their code in full."""
    for types in TYPES:
        for shape in SHAPES:
            yield types, shape, 2
        for shape in ((16, 17, 129), (1, 10, 100_003)):
            for p in NORMS:
                if p != 2:
                    yield types, shape, p


def name(case):
    types, shape, p = case
    short = "-".join(str(t).removeprefix("torch.") for t in types)
    return f"{short}-{'x'.join(map(str, shape))}-p{p}"


# Slopes everywhere, so that every number of both gradients counts.
PHI = Regularizer.softplus(0.5)


def in_float64(problem: Problem) -> Problem:
    return Problem(problem.logits.detach().double(), problem.target, problem.grad.detach().double())


def our_results(backend, problem: Problem, p: float, upstream: float) -> list[Tensor]:
    problem = problem.to(backend.device).requires_grad_()
    out = backend.ops.average_margin_loss(
        problem.logits, problem.target, problem.grad, p=p, regularizer=PHI
    )
    gradients = torch.autograd.grad(out.loss * upstream, (problem.logits, problem.grad))
    return [t.detach().cpu() for t in (out.loss, out.margin, out.norm, *gradients)]


def plain_results(problem: Problem, p: float, upstream: float) -> list[Tensor]:
    logits, grad = problem.logits.requires_grad_(), problem.grad.requires_grad_()
    loss = plain_torch.loss(logits, problem.target, grad, p=p, kind="softplus", hi=0.5)
    margin, norm = plain_torch.margin(plain_torch.gap(logits, problem.target), grad, p)
    gradients = torch.autograd.grad(loss * upstream, (logits, grad))
    return [t.detach() for t in (loss, margin, norm, *gradients)]


@pytest.mark.parametrize("case", list(cases()), ids=name)
@pytest.mark.usefixtures("two_threads")
def test_loss_and_gradients(backend, case):
    (logits_type, grad_type), (batch, classes, size), p = case
    problem = random_problem(batch, classes, (size,), logits_type, grad_type)
    upstream = 3.0
    accuracy.assert_as_accurate(
        ["loss", "margin", "norm", "grad_logits", "grad_grad"],
        our_results(backend, problem, p, upstream),
        plain_results(problem, p, upstream),
        plain_results(in_float64(problem), p, upstream),
    )
