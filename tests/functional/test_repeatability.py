"""The same inputs give the same bits: run again, and whatever the number of threads."""

from __future__ import annotations

import pytest
import torch
from problems import NORMS, random_problem

from margin_ext.regularizers import Regularizer


def everything(backend, problem, p):
    problem = problem.to(backend.device).requires_grad_()
    out = backend.ops.average_margin_loss(
        problem.logits, problem.target, problem.grad, p=p, regularizer=Regularizer.softplus(1)
    )
    gradients = torch.autograd.grad(out.loss * 3, (problem.logits, problem.grad))
    margin, norm = backend.ops.first_order_margin(out.gap, problem.grad.detach(), p=p)
    step = backend.ops.dual_direction(problem.grad.detach(), out.gap, p=p)
    found = [out.loss.detach(), out.margin, out.gap, out.norm, out.statistics.values_tensor]
    return [*found, *gradients, margin, norm, step]


def assert_same_bits(a, b):
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.dtype == y.dtype
        assert torch.equal(x.nan_to_num(7e7), y.nan_to_num(7e7)), i


# Rows split among threads, chunk by chunk (one row of three chunks and a bit; three of two); whole
# rows among threads; so many samples that their totals are summed in groups; many classes.
SHAPES = [(1, 10, 100_003), (3, 10, 65_537), (64, 10, 3072), (1500, 10, 17), (40, 1000, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bits_do_not_depend_on_threads_or_runs(compiled, shape, dtype):
    batch, classes, size = shape
    problem = random_problem(batch, classes, (size,), dtype)
    for p in NORMS if batch == 1 else (2,):
        runs = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            try:
                runs.append(everything(compiled, problem, p))
            finally:
                torch.set_num_threads(1)
        assert_same_bits(runs[0], runs[1])
        assert_same_bits(runs[1], runs[2])
