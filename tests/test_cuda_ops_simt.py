"""The CUDA kernels of the other ops, executed by the emulator and judged by the reference."""

from __future__ import annotations

import math

import pytest
import torch
from backends.simt import AUTO, BLOCK, REREAD, WARP, RefusedError, Simt
from simt_problems import (
    BF16,
    EMULATED,
    F16,
    F32,
    F64,
    GRADIENT_SCALE,
    INF,
    NORMS,
    POISONS,
    SCHEDULES,
    Guarded,
    assert_close,
    dual,
    emulate_multiprocessors,
    restored_device,  # noqa: F401
    ways,
)

from margin_ext import reference
from margin_ext.reference.attack_step import attack_step

pytestmark = EMULATED


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_logit_gap(dtype: torch.dtype) -> None:
    for classes, variant in ((2, AUTO), (33, WARP), (129, BLOCK), (2500, AUTO)):
        logits = torch.randn(5, classes, dtype=F64).to(dtype)
        target = torch.randint(classes, (5,))
        target[2] = -100
        logits[3] = logits[3, 0]  # all tied
        for nearest in (None, (target + 1) % classes):
            ours = Simt(variant).logit_gap(logits, target, nearest, -100)
            right = reference.logit_gap(logits, target, nearest=nearest)
            assert torch.equal(ours[0].nan_to_num(9), right.gap.nan_to_num(9))
            assert torch.equal(ours[1], right.runner_up)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_first_order_margin(dtype: torch.dtype, p: float) -> None:
    variants = [(AUTO, 0), (BLOCK, 1), (BLOCK, 3)] + ([(WARP, 0)] if dtype != F64 else [])
    for variant, cluster in variants:
        grad = torch.randn(4, 501, dtype=F64).to(dtype)
        grad[1] = 0
        gap = torch.randn(4, dtype=F64 if dtype == F64 else F32)
        ours = Simt(variant, cluster).first_order_margin(gap, grad, dual(p), 1e-6, None)
        exact = reference.first_order_margin(gap.double(), grad.double(), p=p)
        same = reference.first_order_margin(gap, grad, p=p)
        for out, right, other in zip(ours, exact, same, strict=True):
            assert_close("margin", out, right, other)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_dual_direction(dtype: torch.dtype, p: float) -> None:
    for number, (variant, cluster) in enumerate(ways(p, dtype)):
        guarded = Guarded(number % 2)
        grad = torch.randn(3, 3, 129, dtype=F64).to(dtype)
        grad[1, 0, :2] = 5.0  # a tie
        base = torch.randn(3, 3, 129, dtype=F64).to(dtype) if number % 2 else None
        factor = torch.tensor([0.5, -2.0, 0.0], dtype=F64 if dtype == F64 else F32)
        scale = torch.tensor([0.5, 1.0, 2.0], dtype=factor.dtype) if number % 3 == 2 else None
        simt = Simt(variant, cluster, allocate=guarded)
        out = simt.dual_direction(grad, factor, base, dual(p), scale)
        guarded.check()
        exact, same = (
            reference.dual_direction(
                cast(grad),
                cast(factor),
                p=p,
                base=None if base is None else cast(base),
                input_std=None if scale is None else 1 / cast(scale),
            )
            for cast in (torch.Tensor.double, torch.Tensor.clone)
        )
        assert_close("direction", out, exact, same)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("number", range(4))
def test_class_margins(dtype: torch.dtype, number: int) -> None:
    """Schedules and poisons, alignments, factors; more rows than blocks are resident, and fewer."""
    acc = F64 if dtype == F64 else F32
    norms = ([1.0, 2.0, 3.0, INF], [2.0], [INF, 1.5], [1.0, 3.0])[number]
    emulate_multiprocessors((1, 132)[number % 2])
    for size in (7, 96, 101, 2500):
        shape = (3, size)
        gap, grad = torch.randn(4, 5, dtype=acc), torch.randn(4, 5, *shape, dtype=F64).to(dtype)
        gap[0, 2] = 0
        gap[1, 3:] = gap[1, 3]
        grad[1, 3:] = grad[1, 3].sign()  # a tie, in whatever order a row is summed
        grad[2, 1:3] = 0
        grad[3, 4, 1, 3] = math.nan
        if number % 2:  # the classes first, and rows off alignment
            storage = torch.zeros(5 * 4 * 3 * size + 1, dtype=dtype)[1:]
            grad = storage.view(5, 4, *shape).copy_(grad.transpose(0, 1)).transpose(0, 1)
        scale = torch.tensor([0.5, 1.0, 2.0], dtype=acc) if number % 2 else None
        guarded = Guarded(number // 2)
        variant = AUTO if number == 0 else BLOCK if dtype == F64 or size == 101 else WARP
        simt = Simt(variant, 0, SCHEDULES[number], POISONS[number % 2], guarded)
        found = simt.class_margins(gap, grad, [dual(p) for p in norms], scale)
        guarded.check()
        exact, same = (
            reference.class_margins(
                cast(gap), cast(grad), p=norms, input_std=None if scale is None else 1 / cast(scale)
            )
            for cast in (torch.Tensor.double, torch.Tensor.clone)
        )
        assert_close("margin", found[0], exact.margin, same.margin)
        assert_close("norm", found[1], exact.norm, same.norm)
        assert torch.equal(found[2], exact.nearest)


def test_class_margins_outside_of_the_range_of_squares() -> None:
    for variant in (WARP, BLOCK):
        for factor in (1e-30, 1e30):
            gap, grad = torch.ones(2, 3), torch.randn(2, 3, 40)
            grad[1] *= factor  # beside rows that need no second pass
            _, norm, _ = Simt(variant).class_margins(gap, grad, [2.0, 0.0], None)
            right = torch.linalg.vector_norm(grad.double(), dim=2)
            torch.testing.assert_close(norm[0].double(), right, rtol=1e-5, atol=0.0)
            assert torch.equal(norm[1], grad.abs().amax(2))


@pytest.mark.parametrize("variant", [WARP, BLOCK])
@pytest.mark.parametrize("classes", [1, 5, 9, 40])
def test_class_margins_of_more_samples_than_blocks(variant: int, classes: int) -> None:
    """Warps in every number; every schedule gives the same bits."""
    emulate_multiprocessors(1)
    gap, grad = torch.randn(40, classes), torch.randn(40, classes, 33)
    gap[:, -1] = gap[:, 0]
    grad[:, 0] = grad[:, 0].sign()
    grad[:, -1] = grad[:, 0]  # a tie: the first class counts
    norms = [1.0, 2.0, 3.0, INF]
    exact = reference.class_margins(gap.double(), grad.double(), p=norms)
    first = None
    for schedule in SCHEDULES:
        simt = Simt(variant, 0, schedule)
        found = simt.class_margins(gap, grad, [dual(p) for p in norms], None)
        assert simt.report.blocks < 40
        assert torch.equal(found[2], exact.nearest)
        torch.testing.assert_close(found[0].double(), exact.margin, rtol=1e-4, atol=1e-6)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


def test_class_margins_refuses_other_variants() -> None:
    for variant, cluster in ((REREAD, 0), (BLOCK, 2)):
        with pytest.raises(RefusedError):
            Simt(variant, cluster).class_margins(torch.ones(1, 2), torch.ones(1, 2, 3), [2.0], None)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_attack_step(dtype: torch.dtype, p: float) -> None:
    acc = F64 if dtype == F64 else F32
    ways = [(AUTO, 0), (BLOCK, 1), (BLOCK, 3)] + ([(WARP, 0)] if dtype != F64 else [])
    for number, (variant, cluster) in enumerate(ways):
        for size in (96, 101):  # whole packs, and not
            shape = (4, 3, size)
            x, grad, center = (torch.randn(shape, dtype=F64).to(dtype) for _ in range(3))
            grad[1] = 0
            length, radius = torch.rand(4, dtype=acc), 3 * torch.rand(4, dtype=acc)
            scaled = number % 2 == 1
            low = torch.tensor([-0.5, -1.0, -0.2], dtype=acc) if scaled else None
            high = torch.tensor([0.5, 0.9, 2.0], dtype=acc) if scaled else None
            scale = torch.tensor([0.5, 1.0, 2.0], dtype=acc) if scaled else None
            guarded = Guarded(number // 2)
            simt = Simt(variant, cluster, SCHEDULES[number], POISONS[number % 2], guarded)
            # Under p = 1 with the step of one coordinate, of a few, and of all.
            steepest = (1, 7, 3 * size)[(number + size) % 3] if p == 1 else 1
            # With and without a step, a center and a ball.
            rows = [x, grad, length, center, radius]
            if size == 101 and number > 0:
                for left_out in ((1, 2), (3,), (4,))[number - 1 :: 3]:
                    for i in left_out:
                        rows[i] = None
            out = simt.attack_step(*rows, dual(p), steepest, low, high, scale)
            guarded.check()
            exact, same = (
                attack_step(
                    *(None if row is None else cast(row) for row in rows),
                    p=p,
                    steepest=steepest,
                    data_range=None if low is None or high is None else (cast(low), cast(high)),
                    input_std=None if scale is None else 1 / cast(scale),
                )
                for cast in (torch.Tensor.double, torch.Tensor.clone)
            )
            assert_close(f"attack step, size {size}", out, exact, same)


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
@pytest.mark.parametrize(("variant", "cluster"), [(WARP, 0), (BLOCK, 1), (BLOCK, 3)])
def test_attack_step_in_place(variant: int, cluster: int, p: float) -> None:
    x, grad = torch.randn(4, 101), torch.randn(4, 101)
    length, radius = torch.ones(4), torch.rand(4)
    simt = Simt(variant, cluster, schedule=SCHEDULES[cluster])
    arguments = (grad, length, None, radius, dual(p), 7 if p == 1 else 1, None, None, None)
    right = simt.attack_step(x, *arguments)
    simt.attack_step_(x, *arguments)
    assert torch.equal(x, right)


def test_attack_step_of_the_steepest() -> None:
    """Ties, zeros and numbers without all their bits."""
    grad = torch.randn(6, 300)
    grad[1] = grad[1].sign()
    grad[2, 3:] = 0
    grad[3] = 0
    grad[4] *= 1e-40
    grad[5, ::2] = 1e30
    x, length = torch.zeros(6, 300), torch.ones(6)
    for variant, cluster in ((WARP, 0), (BLOCK, 1), (BLOCK, 3)):
        for steepest in (2, 12, 150, 300):
            simt = Simt(variant, cluster)
            out = simt.attack_step(x, grad, length, None, None, 0.0, steepest, None, None, None)
            right = attack_step(x, grad, length, p=1, steepest=steepest)
            torch.testing.assert_close(out, right)


@pytest.mark.parametrize("p", NORMS)
def test_dual_direction_of_rows_of_any_size(p: float) -> None:
    """Their squares leave the range of float32; a NaN makes all of its row NaN."""
    grad = torch.randn(5, 2, 152) * torch.tensor([1e-30, 1e-15, 1.0, 1e15, 1e30])[:, None, None]
    grad[2, 1, 7] = math.nan
    for scale in (None, torch.tensor([0.5, 3.0])):
        wide = grad.double() if scale is None else grad.double() * scale.double()[:, None]
        right = reference.dual_direction(wide.flatten(1), torch.ones(5, dtype=F64), p=p)
        right = right.view_as(grad) if scale is None else right.view_as(grad) * scale[:, None]
        ways = [(AUTO, 0)] if p == 3 else [(WARP, 0), (BLOCK, 1), (BLOCK, 3)]
        for variant, cluster in ways:
            out = Simt(variant, cluster).dual_direction(grad, torch.ones(5), None, dual(p), scale)
            assert_close("direction", out, right, right.float())


@pytest.mark.parametrize("p", NORMS)
def test_dual_direction_under_a_broken_factor(p: float) -> None:
    """Infinity times 0 is NaN, of elements that are 0 and of rows of zeros."""
    grad, factor = torch.zeros(3, 2, 152), torch.tensor([math.inf, math.nan, -math.inf])
    grad[:2, 1, 7] = -2.0
    right = reference.dual_direction(grad, factor, p=p)
    for variant, cluster in [(AUTO, 0)] if p == 3 else [(WARP, 0), (BLOCK, 1), (BLOCK, 3)]:
        out = Simt(variant, cluster).dual_direction(grad, factor, None, dual(p), None)
        torch.testing.assert_close(out, right, equal_nan=True)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("ball", [None, 1.0, math.inf])
def test_attack_step_of_a_broken_length(p: float, ball: float | None) -> None:
    x, grad = torch.zeros(3, 2, 152), torch.zeros(3, 2, 152)
    grad[:2, 1, 7:9] = torch.tensor([-2.0, 1.0])
    length = torch.tensor([math.inf, math.nan, -math.inf])
    center = None if ball is None else x
    radius = None if ball is None else torch.full((3,), ball)
    right = attack_step(x, grad, length, center, radius, p=p)
    for variant, cluster in [(AUTO, 0)] if p == 3 else [(WARP, 0), (BLOCK, 1), (BLOCK, 3)]:
        simt = Simt(variant, cluster)
        out = simt.attack_step(x, grad, length, center, radius, dual(p), 1, None, None, None)
        torch.testing.assert_close(out, right, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 64), (1, 7), (3, 256), (3, 85)])
def test_a_second_pass_under_any_factor_of_a_channel(shape: tuple[int, int]) -> None:
    """The product of the two factors may be infinite or lose bits where the elements do not."""
    for size, factor in ((0.0, 1e12), (1e-30, 1e12), (1e37, 2.0**-62), (1e-25, 1e-10)):
        grad, scale = torch.full((2, *shape), size), torch.full((shape[0],), factor)
        right = size * factor * math.prod(shape) ** 0.5
        for variant, cluster in ((WARP, 0), (BLOCK, 1)):
            simt = Simt(variant, cluster)
            norm = simt.first_order_margin(torch.ones(2), grad, 2.0, 1e-6, scale)[1]
            torch.testing.assert_close(norm, torch.full((2,), right), rtol=1e-5, atol=0)
            step = simt.dual_direction(grad, torch.ones(2), None, 2.0, scale)
            along = torch.full_like(grad, factor / math.prod(shape) ** 0.5 if size else 0.0)
            torch.testing.assert_close(step, along, rtol=1e-5, atol=0)
            moved = simt.attack_step(
                torch.zeros_like(grad), grad, torch.ones(2), None, None, 2.0, 1, None, None, scale
            )
            torch.testing.assert_close(moved, along, rtol=1e-5, atol=0)


@pytest.mark.parametrize("pixels", [30_000, 30_001])
def test_dual_direction_beyond_a_block(pixels: int) -> None:
    """What is kept ends within a channel, after an odd number of rounds of the threads."""
    grad, scale = torch.randn(1, 3, pixels), torch.tensor([0.5, 1.0, 2.0])
    factor = torch.ones(1)
    out = Simt(BLOCK, 1).dual_direction(grad, factor, None, 2.0, scale)
    exact, same = (
        reference.dual_direction(g, f, input_std=1 / scale.to(f.dtype))
        for g, f in ((grad.double(), factor.double()), (grad, factor))
    )
    assert_close("direction", out, exact, same)


@pytest.mark.parametrize("p", NORMS)
def test_attack_step_along_gradients_of_any_size(p: float) -> None:
    """Their squares leave the range of float32, and the step has its length all the same."""
    grad = torch.randn(4, 300) * torch.tensor([[1e-30], [1e-15], [1e15], [1e30]])
    x, length = torch.zeros(4, 300), torch.ones(4)
    right = attack_step(x.double(), grad.double(), length.double(), p=p)
    for variant, cluster in ((WARP, 0), (BLOCK, 1), (BLOCK, 3)):
        simt = Simt(variant, cluster)
        out = simt.attack_step(x, grad, length, None, None, dual(p), 1, None, None, None)
        torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-6)


def test_attack_step_on_a_broken_gradient() -> None:
    x, grad = torch.randn(3, 40), torch.randn(3, 40)
    grad[1, 7] = math.nan
    for p, steepest in ((1.0, 1), (1.0, 3), (2.0, 1), (INF, 1)):
        out = Simt().attack_step(
            x, grad, torch.ones(3), x, torch.ones(3), dual(p), steepest, None, None, None
        )
        assert out.isnan().all(1).tolist() == [False, True, False]
        assert not bool(out[[0, 2]].isnan().any())


@pytest.mark.parametrize("dtypes", [(F16, BF16), (F32, F32), (F64, F64)])
def test_scale_gradients(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    acc = F64 if F64 in dtypes else F32
    for upstream, stored in ((0.5, 0.75), (2.0, 0.5), (1.0, 1.0)):
        guarded = Guarded(1)
        gradients = [guarded((2, 5, 103), dtype).copy_(torch.randn(2, 5, 103)) for dtype in dtypes]
        before = [g.clone() for g in gradients]
        statistics = torch.zeros(9, dtype=acc)
        statistics[GRADIENT_SCALE] = stored
        Simt().scale_gradients_(*gradients, torch.tensor(upstream, dtype=acc), statistics)
        guarded.check()
        for now, then in zip(gradients, before, strict=True):
            right = (then.to(acc) * upstream * stored).to(then.dtype)
            assert torch.equal(now, right)
