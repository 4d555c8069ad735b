"""On the CPU the logits of several samples with few classes are reduced together. Classes that are
masked by -inf change nothing, so the same logits with more of them, which are reduced sample by
sample, must have the same bits.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from margin_ext import Regularizer
from margin_ext._extension import cpu_library
from margin_ext.functional import additive_margin_loss, average_margin_loss

pytestmark = pytest.mark.skipif(not cpu_library.loaded, reason="no CPU library")

MANY = 40  # more than kFewClasses in csrc/cpu/row_kernels.h
PHI = Regularizer.softplus(0.5)


def problem(batch: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with ties, NaN, infinities and masks in some rows, and some ignored samples."""
    source = torch.Generator().manual_seed(100 * batch + classes)
    logits = 3 * torch.randn(batch, classes, generator=source, dtype=torch.float64)
    target = torch.randint(classes, (batch,), generator=source)
    last = classes - 1
    for row, values in enumerate(
        ([0.0, 0.0], [math.nan], [math.inf], [-math.inf] * last, [1.0, math.nan, math.inf])
    ):
        place = 3 + 5 * row
        if place < batch:
            logits[place, : len(values)] = torch.tensor(values, dtype=torch.float64)[:classes]
    target[torch.rand(batch, generator=source) < 0.1] = -100
    grad = torch.randn(batch, 6, generator=source, dtype=torch.float64)
    return logits.to(dtype), target, grad.to(dtype)


def results(logits: Tensor, target: Tensor, grad: Tensor, kind: str, classes: int) -> list[Tensor]:
    logits, grad = logits.clone().requires_grad_(), grad.clone().requires_grad_()
    if kind == "additive":
        out = additive_margin_loss(logits, target, grad, tau=0.5)
    else:
        nearest = None if kind == "runner_up" else (target.clamp_min(0) + 1) % classes
        out = average_margin_loss(logits, target, grad, nearest=nearest, regularizer=PHI)
    gradients = torch.autograd.grad(out.loss, (logits, grad))
    statistics = out.statistics.values_tensor
    return [out.loss, out.margin, out.gap, statistics, gradients[0][:, :classes], gradients[1]]


@pytest.mark.parametrize("kind", ["runner_up", "nearest", "additive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 8, 10, 16, 17, 32])
@pytest.mark.parametrize("batch", [1, 5, 16, 37])
def test_few_classes_have_the_bits_of_many(batch, classes, dtype, kind):
    logits, target, grad = problem(batch, classes, dtype)
    masked = torch.full((batch, MANY - classes), -math.inf, dtype=dtype)
    few = results(logits, target, grad, kind, classes)
    many = results(torch.cat([logits, masked], dim=1), target, grad, kind, classes)
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
