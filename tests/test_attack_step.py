"""attack_step of the compiled CPU kernels against the reference, and against a slow search."""

from __future__ import annotations

import math

import pytest
import torch
from backends import CPU
from torch import Tensor

from margin_ext import functional
from margin_ext.functional import dispatch
from margin_ext.norms import op_exponent
from margin_ext.reference.attack_step import attack_step as reference_step
from margin_ext.threat import ThreatModel

pytestmark = pytest.mark.skipif(CPU.missing() is not None, reason=CPU.missing() or "built")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NORMS = (1.0, 1.5, 2.0, 3.0, math.inf)
NEAREST = (1.0, 2.0, math.inf)  # norms for which the nearest point of the ball is taken


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
    steepest: int = 1,
) -> Tensor:
    low, high = data_range or (None, None)
    scale = None if std is None else 1 / std
    out: Tensor = torch.ops.margin_ext.attack_step(
        *problem, op_exponent(p), steepest, low, high, scale
    )
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


@pytest.mark.parametrize("p", NEAREST)
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


@pytest.mark.parametrize("steepest", [1, 3])
@pytest.mark.parametrize("p", NORMS)
def test_a_broken_length_breaks_what_the_reference_says(p: float, steepest: int) -> None:
    x = torch.zeros(6, 37)
    grad = torch.zeros(6, 37)
    grad[:3, ::6] = torch.tensor([1.0, -2.0, 0.0, 2.0, 0.5, -0.5, 1.0])
    length = torch.tensor([math.inf, -math.inf, math.nan]).repeat(2)
    options = {"p": p, "steepest": steepest if p == 1 else 1}
    for ball in ((), (x, torch.ones(6)), (x, torch.full((6,), math.inf))):
        ours = functional.attack_step(x, grad, length, *ball, **options)
        right = reference_step(x, grad, length, *ball, **options)
        assert bool(right[:, 1].isnan().all())
        torch.testing.assert_close(ours, right, equal_nan=True)


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "radius"), [(65536, 6.5e-3), (150528, 1e-3)])
def test_l1_ends_where_rounding_moves_the_threshold_back(
    seed: int, size: int, radius: float
) -> None:
    """Sums of so many numbers of one size hide the radius; elements left and came back forever."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + 1e-6 * torch.randn(1, size, generator=generator)
    zero, length = torch.zeros(1, size), torch.zeros(1)
    ours = compiled((x, zero, length, zero, torch.tensor([radius])), 1.0)
    assert float(ours.abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize(("size", "steepest"), [(16, 3), (784, 31), (784, 784), (33, 2)])
def test_the_steepest_coordinates_share_the_step(
    dtype: torch.dtype, size: int, steepest: int
) -> None:
    x, grad, length, center, radius = problem((5, size), dtype, size)
    grad[1] = 0
    grad[2, 1:] = 0
    grad[3] = torch.sign(grad[3])  # all tied
    given = (x, grad, length, center, radius)
    ours = compiled(given, 1.0, steepest=steepest)
    right = reference_step(*given, p=1, steepest=steepest)
    torch.testing.assert_close(ours, right, rtol=tolerance(dtype), atol=tolerance(dtype))
    std = torch.tensor([0.5], dtype=length.dtype)
    alone = compiled((x, grad, length, None, None), 1.0, std=std, steepest=steepest)
    right = reference_step(x, grad, length, p=1, steepest=steepest, input_std=std)
    torch.testing.assert_close(alone, right, rtol=tolerance(dtype), atol=tolerance(dtype))


def test_the_steepest_are_the_steepest() -> None:
    """From the definition: the largest magnitudes move, each by the same part of the length."""
    x, length = torch.zeros(4, 6), torch.tensor([6.0, 6.0, 6.0, 6.0])
    grad = torch.tensor(
        [
            [1.0, -5.0, 3.0, 0.0, -4.0, 2.0],
            [1.0, -4.0, 4.0, 4.0, 0.0, 4.0],  # four are tied in the third place
            [0.0, -2.0, 0.0, 0.0, 0.0, 0.0],  # fewer than three are steep
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    right = torch.tensor(
        [
            [0.0, -2.0, 2.0, 0.0, -2.0, 0.0],
            [0.0, -1.5, 1.5, 1.5, 0.0, 1.5],
            [0.0, -2.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    for step in (functional.attack_step, reference_step):
        torch.testing.assert_close(step(x, grad, length, p=1, steepest=3), right)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_what_is_left_out(p: float, dtype: torch.dtype) -> None:
    """Without a gradient there is no step, without a radius no ball, and x is the usual center."""
    x, grad, length, center, radius = problem((4, 3, 5, 7), dtype)
    ends = (torch.tensor([0.1]), torch.tensor([0.8]))
    std = torch.tensor([0.5, 1.0, 2.0])
    for given in (
        (x, None, None, center, radius),
        (x, None, None, center, None),
        (x, None, None, None, None),
        (x, grad, length, None, radius),
        (x, grad, length, center, None),
        (x, grad, -length, None, None),
    ):
        for options in ({}, {"data_range": ends}, {"data_range": ends, "input_std": std}):
            ours = functional.attack_step(*given, p=p, **options)
            right = reference_step(*given, p=p, **options)
            torch.testing.assert_close(ours, right, rtol=tolerance(dtype), atol=tolerance(dtype))
    inside = functional.attack_step(x, data_range=ends, p=p)
    assert torch.equal(inside, x.clamp(ends[0].to(dtype), ends[1].to(dtype)))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_other"])
def test_in_place(p: float, layout: str) -> None:
    x, grad, length, center, radius = problem((4, 3, 5, 8), F32)
    right = functional.attack_step(x, grad, length, center, radius, p=p)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "every_other":
        x = x.repeat_interleave(2, dim=3)[..., ::2]
    before = x.stride(), x.data_ptr()
    moved = functional.attack_step(x, grad, length, center, radius, p=p, in_place=True)
    assert moved is x
    assert (x.stride(), x.data_ptr()) == before
    torch.testing.assert_close(x, right, rtol=2e-5, atol=2e-5)
    # Around itself: every element is read before it is written.
    x, again = x.contiguous(), x.contiguous().clone()
    right = functional.attack_step(again, grad, length, radius=radius, p=p)
    functional.attack_step(x, grad, length, radius=radius, p=p, in_place=True)
    torch.testing.assert_close(x, right, rtol=0, atol=0)


def test_a_graph_that_kept_the_old_values_is_refused() -> None:
    x, grad, length, *_ = problem((4, 5), F32)
    weight = torch.ones(4, 5, requires_grad=True)
    out = (weight * x).sum()
    functional.attack_step(x, grad, length, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_in_place_needs_tensors_without_a_graph() -> None:
    x, grad, length, center, radius = problem((4, 5), F32)
    x.requires_grad_()
    with pytest.raises(ValueError, match="has no gradient: detach"):
        functional.attack_step(x, grad, length, center, radius, in_place=True)
    with pytest.raises(ValueError, match="share memory between its samples"):
        functional.attack_step(center[:1].expand(4, 5), grad, length, in_place=True)


@pytest.mark.parametrize("p", NORMS)
def test_the_reference_serves_where_a_gradient_is_asked_for(p: float) -> None:
    x, grad, length, center, radius = problem((3, 6), F64)
    inputs = (x.requires_grad_(), grad, length, center, 0.5 * radius)
    assert torch.autograd.gradcheck(lambda x: functional.attack_step(x, *inputs[1:], p=p), (x,))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("std", [None, (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("bounded", [False, True])
def test_a_threat_model_steps_the_same_without_the_library(
    p: float, std: tuple[float, ...] | None, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, grad, length, center, radius = problem((4, 3, 5, 7), F32)
    threat = ThreatModel(p=p, data_range=(0.1, (0.7, 0.8, 0.9)) if bounded else None, input_std=std)

    def results() -> list[Tensor]:
        ball = {"center": center, "radius": radius}
        return [
            threat.attack_step(x, grad, length, **ball),
            threat.attack_step(x, grad, length, **ball, sparse=True),
            threat.attack_step(x, grad, length),
            threat.project(x, center, radius),
            threat.clamp(x),
        ]

    fused = results()
    # Step by step.
    moved = threat.step(grad, length, x)
    torch.testing.assert_close(fused[0], threat.project(moved, center, radius))
    torch.testing.assert_close(fused[2], threat.clamp(moved))
    if p != 1:
        torch.testing.assert_close(fused[1], fused[0])
    monkeypatch.setattr(dispatch, "ops_available", lambda device: False)
    for ours, right in zip(fused, results(), strict=True):
        torch.testing.assert_close(ours, right, rtol=2e-5, atol=2e-6)


def test_what_does_not_fit_is_refused() -> None:
    x, grad, length, center, radius = problem((4, 3, 5), F32)
    op = torch.ops.margin_ext.attack_step
    free = (None, None, None)
    with pytest.raises(ValueError, match=r"steepest must lie in 1\.\.15, got 16"):
        op(x, grad, length, center, radius, 0.0, 16, *free)
    with pytest.raises(ValueError, match="steepest is for p = 1, got q = 2 and steepest = 2"):
        op(x, grad, length, center, radius, 2.0, 2, *free)
    with pytest.raises(ValueError, match=r"x must have the shape and type of grad, \[4, 3, 5\]"):
        op(x[:, :2], grad, length, center, radius, 2.0, 1, *free)
    with pytest.raises(ValueError, match="low and high must be given together"):
        op(x, grad, length, center, radius, 2.0, 1, torch.zeros(1), None, None)
    with pytest.raises(ValueError, match="grad and length must be given together"):
        op(x, grad, None, center, radius, 2.0, 1, *free)
    with pytest.raises(ValueError, match=r"high must be \[1\] or one value a channel, \[3\]"):
        op(x, grad, length, center, radius, 2.0, 1, torch.zeros(1), torch.ones(2), None)
    with pytest.raises(ValueError, match=r"radius must be \[4\]"):
        op(x, grad, length, center, radius[:2], 2.0, 1, *free)
    for step in (functional.attack_step, reference_step):
        with pytest.raises(ValueError, match=r"steepest must lie in 1\.\.15, got 16"):
            step(x, grad, length, p=1, steepest=16)
        with pytest.raises(ValueError, match=r"steepest is for p = 1"):
            step(x, grad, length, p=2, steepest=2)
        with pytest.raises(ValueError, match="grad and length must be given together"):
            step(x, grad)


def test_compiles_without_a_graph_break() -> None:
    given = problem((4, 3, 5), F32)
    for backend in ("eager", "aot_eager"):
        step = torch.compile(functional.attack_step, fullgraph=True, backend=backend)
        torch.testing.assert_close(step(*given), compiled(given, 2.0))
        x = given[0].clone()
        step(x, *given[1:], in_place=True)
        torch.testing.assert_close(x, compiled(given, 2.0))
