"""Random inputs of the ops, away from the points where they have no derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plain_torch
import torch
from torch import Tensor

from margin_ext.regularizers import Regularizer

__all__ = ["NORMS", "REGULARIZERS", "SCALAR_NORMS", "Problem", "random_problem", "smooth_problem"]

# The threat norms with kernels of their own, and two general ones: 1.5 -> q = 3, 3 -> q = 1.5.
NORMS = (1, 2, float("inf"), 1.5, 3)
# Those whose kernels work on one number at a time: `takes_scalars` in csrc/core/dual_norm.h.
SCALAR_NORMS = (1.5, 3)

REGULARIZERS = {
    "ramp": Regularizer.ramp(-0.4, 0.8),
    "hinge": Regularizer.hinge(0.5),
    "linear": Regularizer.linear(),
    "softplus": Regularizer.softplus(0.7),
    "exponential": Regularizer.exponential(1.3),
}


@dataclass
class Problem:
    logits: Tensor  # [B, C]
    target: Tensor  # [B]
    grad: Tensor  # [B, ...]

    def to(self, device: str) -> Problem:
        return Problem(self.logits.to(device), self.target.to(device), self.grad.to(device))

    def requires_grad_(self) -> Problem:
        self.logits.requires_grad_()
        self.grad.requires_grad_()
        return self


def random_problem(
    batch: int = 4,
    classes: int = 5,
    sample: tuple[int, ...] = (6,),
    dtype: torch.dtype = torch.float64,
    grad_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Problem(
        normal(batch, classes).to(dtype),
        torch.randint(classes, (batch,), generator=generator),
        normal(batch, *sample).to(grad_dtype or dtype),
    )


def smooth_problem(
    phi: Regularizer, p: float, *, batch: int = 3, classes: int = 4, size: int = 4
) -> Problem:
    """Float64; no tie near, no gradient element near 0, no margin near an end of the ramp."""
    for seed in range(10_000):
        problem = random_problem(batch, classes, (size,), seed=seed)
        magnitude = problem.grad.abs().sort(dim=1).values
        top = problem.logits.sort(dim=1).values
        gaps = plain_torch.gap(problem.logits, problem.target)
        t = torch.stack([gaps, plain_torch.margin(gaps, problem.grad, p)[0]])
        ends = torch.tensor([[[phi.lo]], [[phi.hi]]]) if phi.kind in ("ramp", "hinge") else t + 9
        distances: list[Any] = [
            magnitude[:, 0],
            magnitude[:, -1] - magnitude[:, -2],
            top.diff(dim=1),
            (t - ends).abs(),
        ]
        if all(float(d.min()) > 0.03 for d in distances):
            return problem
    raise AssertionError("no such problem found")
