"""attack_step of the compiled CPU kernels against the reference, and against a slow search."""

from __future__ import annotations

import math

import pytest
import torch
from backends import CPU
from torch import Tensor

from margin_ext.reference.attack_step import attack_step as reference_step

pytestmark = pytest.mark.skipif(CPU.missing() is not None, reason=CPU.missing() or "built")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NORMS = (1.0, 2.0, math.inf)
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def problem(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=F64)

    center = normal(*shape).sigmoid()
    x = center + 0.1 * normal(*shape)
    grad = normal(*shape)
    acc = F64 if dtype == F64 else F32
    length, radius = normal(shape[0]).abs().to(acc), normal(shape[0]).abs().to(acc)
    return x.to(dtype), grad.to(dtype), length, center.to(dtype), radius


def compiled(
    problem: tuple[Tensor, ...],
    p: float,
    data_range: tuple[Tensor, Tensor] | None = None,
    std: Tensor | None = None,
) -> Tensor:
    low, high = data_range or (None, None)
    scale = None if std is None else 1 / std
    out: Tensor = torch.ops.margin_ext.attack_step(*problem, DUAL[p], low, high, scale)
    return out


def tolerance(dtype: torch.dtype) -> float:
    return {F16: 4e-3, BF16: 3e-2, F32: 2e-5, F64: 1e-12}[dtype]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("size", [1, 3, 16, 33, 784, 3072])
def test_agrees_with_the_reference(dtype: torch.dtype, p: float, size: int) -> None:
    given = problem((7, size), dtype, size)
    ours = compiled(given, p)
    right = reference_step(*given, p=p)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, right, rtol=tolerance(dtype), atol=tolerance(dtype))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_range_and_factors_by_channel(p: float, channels_last: bool) -> None:
    given = problem((4, 3, 5, 7), F32)
    if channels_last:
        x, grad, length, center, radius = given
        grad = grad.to(memory_format=torch.channels_last)
        given = (x, grad, length, center, radius)
    low, high = torch.tensor([0.0, 0.2, -0.1]), torch.tensor([0.9, 0.8, 0.7])
    std = torch.tensor([0.5, 1.0, 2.0])
    ours = compiled(given, p, (low, high), std)
    right = reference_step(*given, p=p, data_range=(low, high), input_std=std)
    torch.testing.assert_close(ours, right, rtol=2e-5, atol=2e-5)
    assert ours.stride() == given[1].stride()
    assert bool((ours >= low.view(3, 1, 1)).all() and (ours <= high.view(3, 1, 1)).all())


@pytest.mark.parametrize("p", NORMS)
def test_the_result_is_in_the_ball_and_nearest(p: float) -> None:
    """Against a slow search: no point of the ball is nearer to where the step leads."""
    given = problem((5, 6), F64)
    x, grad, length, center, radius = given
    ours = compiled(given, p)
    distance = torch.linalg.vector_norm(ours - center, p, dim=1)
    assert bool((distance <= radius * (1 + 1e-12)).all())
    target = reference_step(x, grad, length, center, radius + 1e9, p=p)
    best = (ours - target).norm(dim=1)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        other = ours + 0.05 * torch.randn(ours.shape, generator=generator, dtype=F64)
        offset = other - center
        size = torch.linalg.vector_norm(offset, p, dim=1, keepdim=True)
        other = center + offset * (radius.unsqueeze(1) / size).clamp_max(1)
        assert bool(((other - target).norm(dim=1) >= best - 1e-9).all())


@pytest.mark.parametrize("p", NORMS)
def test_zero_gradients_radii_and_nan(p: float) -> None:
    x, grad, length, center, radius = problem((4, 37), F32)
    grad[0] = 0
    radius[1] = 0
    grad[2, 5] = math.nan
    ours = compiled((x, grad, length, center, radius), p)
    torch.testing.assert_close(ours[1], center[1])
    assert bool(ours[2].isnan().all())
    assert bool(ours[[0, 1, 3]].isfinite().all())
    right = reference_step(x, grad, length, center, radius, p=p)
    torch.testing.assert_close(ours[[0, 1, 3]], right[[0, 1, 3]], rtol=2e-5, atol=2e-5)


def test_l1_with_ties_and_one_large_element() -> None:
    x = torch.zeros(3, 8)
    center = torch.zeros(3, 8)
    grad = torch.zeros(3, 8)
    x[0] = 1.0  # all tied
    x[1, 3], x[1, 4] = 100.0, 1e-3
    x[2] = torch.arange(8.0)
    radius, length = torch.tensor([2.0, 1.0, 3.0]), torch.zeros(3)
    ours = compiled((x, grad, length, center, radius), 1.0)
    torch.testing.assert_close(ours, reference_step(x, grad, length, center, radius, p=1))
    torch.testing.assert_close(ours.abs().sum(1), radius)


def test_what_does_not_fit_is_refused() -> None:
    x, grad, length, center, radius = problem((4, 3, 5), F32)
    op = torch.ops.margin_ext.attack_step
    with pytest.raises(ValueError, match="p = 1, 2 and inf, got q = 3"):
        op(x, grad, length, center, radius, 3.0, None, None, None)
    with pytest.raises(ValueError, match=r"x must have the shape and type of grad, \[4, 3, 5\]"):
        op(x[:, :2], grad, length, center, radius, 2.0, None, None, None)
    with pytest.raises(ValueError, match="low and high must be given together"):
        op(x, grad, length, center, radius, 2.0, torch.zeros(1), None, None)
    with pytest.raises(ValueError, match=r"high must be \[1\] or one value a channel, \[3\]"):
        op(x, grad, length, center, radius, 2.0, torch.zeros(1), torch.ones(2), None)
    with pytest.raises(ValueError, match=r"radius must be \[4\]"):
        op(x, grad, length, center, radius[:2], 2.0, None, None, None)


def test_compiles_without_a_graph_break() -> None:
    given = problem((4, 3, 5), F32)
    step = torch.compile(
        lambda *a: torch.ops.margin_ext.attack_step(*a, 2.0, None, None, None),
        fullgraph=True,
        backend="eager",
    )
    torch.testing.assert_close(step(*given), compiled(given, 2.0))
