"""The CUDA kernel of the loss, executed by the emulator and judged by the reference in float64.

A result may be off by at most twice what the reference in the same types is off, and a rounding.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from backends.simt import AUTO, BLOCK, REREAD, WARP, Simt
from layouts import DENSE
from problems import REGULARIZERS, SCALAR_NORMS
from simt_problems import (
    BF16,
    EMULATED,
    F16,
    F32,
    F64,
    INF,
    NORMS,
    POISONS,
    SCHEDULES,
    Guarded,
    Loss,
    assert_close,
    dual,
    emulate_multiprocessors,
    restored_device,  # noqa: F401
    ways,
)

from margin_ext import reference
from margin_ext.loss_settings import Reduction

pytestmark = EMULATED


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("dtype", "logits_dtype"), [(F16, BF16), (BF16, F32), (F32, F16), (F32, F32), (F64, F64)]
)
def test_every_variant(dtype: torch.dtype, logits_dtype: torch.dtype, p: float) -> None:
    full_warp = 16_384 // dtype.itemsize
    for number, (variant, cluster) in enumerate(ways(p, dtype)):
        sizes = (
            (full_warp - 1, 3)
            if variant == WARP
            else (full_warp + 5, 1000 if cluster == 8 else 150)
        )
        simt = Simt(variant, cluster, SCHEDULES[number % 4], POISONS[number % 2])
        for size in sizes if variant != AUTO else sizes[:1]:
            loss = Loss(3, 7, size, p, dtype, logits_dtype, smoothing=0.1 if number % 2 else 0.0)
            loss.check(simt)
            if variant != AUTO:
                assert simt.report.variant == variant
                assert simt.report.cluster_size == max(cluster, 1)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 2048, 2049, 4097])
def test_sizes_around_boundaries(size: int, p: float) -> None:
    """Of packs, warps, the row of a warp, and the threads of a block."""
    Loss(2, 3, size, p, F32).check(Simt())
    if size in (17, 1025, 4097):
        Loss(2, 3, size, p, BF16).check(Simt())


@pytest.mark.parametrize("cluster", range(1, 9))
def test_every_cluster_size(cluster: int) -> None:
    """Rows that leave the last block few packs, and logits with fewer classes than threads."""
    for p in (1, 2, INF):
        Loss(2, 300, 4 * (cluster * 37 + 1) + 3, p, F32, weighted=True, smoothing=0.2).check(
            Simt(BLOCK, cluster, schedule=cluster)
        )


def test_rows_beyond_a_block() -> None:
    """What does not fit on chip is shared by a cluster, or read again where there is none."""
    for dtype in (F32, BF16):
        fits = (227 * 1024 - 4096) // dtype.itemsize
        for size, clusters, cluster in (
            (fits, 1, 1),
            (fits + 16, 1, 1),
            (3 * fits + 7, 1, 1),
            (fits // 2, 0, 2),
            (8 * fits + 4099, 8, 8),
        ):
            simt = Simt(AUTO, clusters)
            Loss(1, 3, size, 2, dtype).check(simt)
            assert simt.report.variant == BLOCK
            assert (simt.report.cluster_size > 1) == (cluster > 1)


@pytest.mark.parametrize("p", NORMS)
def test_channel_factors_of_rows_beyond_a_block(p: float) -> None:
    variant = REREAD if p in SCALAR_NORMS else BLOCK
    Loss(1, 3, p=p, shape=(3, 30_000), scaled=True).check(Simt(variant, 1))


@pytest.mark.parametrize("p", NORMS)
def test_without_gradients_nothing_is_kept(p: float) -> None:
    for batch, size, dtype in ((5, 40, F32), (3, 5003, F32), (2, 33_001, BF16), (1, 9000, F64)):
        simt = Simt()
        Loss(batch, 4, size, p, dtype, gradients=False).check(simt)
        assert simt.report.shared_bytes == 0


def test_signs_beyond_a_block() -> None:
    """q = 1 keeps two bits an element, and reads again what has no room."""
    Loss(1, 3, 4 * 223 * 1024 + 5003, INF, F32).check(Simt(BLOCK, 1))


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shift", [0, 1])
def test_any_layout_and_alignment(layout: str, shift: int) -> None:
    """Outputs as misaligned as the rows, or otherwise; nothing around them is written."""
    for p, dtype, variant in ((2, F32, AUTO), (1, BF16, BLOCK), (INF, F16, BLOCK), (3, F32, AUTO)):
        guarded = Guarded(shift)
        loss = Loss(3, 5, p=p, dtype=dtype, shape=(3, 5, 9), layout=layout)
        loss.check(Simt(variant, allocate=guarded))
        guarded.check()


@pytest.mark.parametrize("variant", [(WARP, 0), (BLOCK, 1), (BLOCK, 3)])
def test_any_schedule_repeats_bit_for_bit(variant: tuple[int, int]) -> None:
    emulate_multiprocessors(2)
    loss = Loss(40, 11, 260, 2, F32, weighted=True, smoothing=0.1)
    first = loss.check(Simt(*variant))
    for schedule in (*SCHEDULES[1:], 7):
        for poison in POISONS:
            again = loss.run(Simt(*variant, schedule, poison))
            for a, b in zip(first, again, strict=True):
                assert torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize("with_grad", [True, False])
def test_reductions_weights_and_ignored_samples(reduction: str, with_grad: bool) -> None:
    for variant in (AUTO, BLOCK):
        Loss(
            7,
            4,
            30,
            reduction=reduction,
            weighted=True,
            ignored=True,
            smoothing=0.3,
            with_grad=with_grad,
        ).check(Simt(variant))
    Loss(5, 4, 30, reduction=reduction, nearest=True, with_grad=with_grad).check(Simt())


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_regularizers(kind: str) -> None:
    Loss(6, 4, 20, regularizer=REGULARIZERS[kind]).check(Simt())


@pytest.mark.parametrize("p", NORMS)
def test_channel_factors(p: float) -> None:
    for dtype, layout, variant in (
        (F32, "contiguous", AUTO),
        (F32, "channels_last", BLOCK if p != 3 else AUTO),
        (BF16, "gaps_between_samples", BLOCK if p != 3 else REREAD),
        (F64, "offset", REREAD if p in SCALAR_NORMS else BLOCK),
    ):
        loss = Loss(3, 4, p=p, dtype=dtype, shape=(5, 11, 13), scaled=True, layout=layout)
        loss.check(Simt(variant, 2 if dtype in (BF16, F64) and variant != AUTO else 0))


def test_many_classes() -> None:
    for classes, variant, cluster in ((2049, AUTO, 0), (600, BLOCK, 2), (5003, BLOCK, 1)):
        for with_grad in (True, False):
            if cluster < 2 or with_grad:
                Loss(2, classes, 90, weighted=True, smoothing=0.1, with_grad=with_grad).check(
                    Simt(variant, cluster)
                )


def test_more_samples_than_groups() -> None:
    emulate_multiprocessors(1)
    for variant, cluster in ((WARP, 0), (BLOCK, 1), (BLOCK, 2)):
        loss = Loss(70, 3, 35, p=1, ignored=True)
        simt = Simt(variant, cluster)
        loss.check(simt)
        assert simt.report.blocks < 70


def test_empty_batch() -> None:
    loss = Loss(0, 3, 8)
    out = loss.run(Simt())
    assert bool(out[0].isnan())
    assert float(out[4][7]) == 0
    assert float(Loss(0, 3, 8, reduction="sum").run(Simt())[0]) == 0
    gap, runner_up = Simt().logit_gap(loss.logits, loss.target, None, -100)
    assert gap.shape == runner_up.shape == (0,)


@pytest.mark.parametrize(("variant", "cluster"), [(WARP, 0), (BLOCK, 1), (BLOCK, 2)])
def test_bad_labels_show_as_nan(variant: int, cluster: int) -> None:
    loss = Loss(6, 4, 50, reduction="none")
    loss.target[1], loss.target[3] = 4, -1
    simt = Simt(variant, cluster)
    value, margin, gap, norm, statistics, grad_logits, grad_grad = loss.run(simt)
    bad = torch.tensor([False, True, False, True, False, False])
    for out in (value, margin, gap):
        assert torch.equal(out.isnan(), bad)
    assert not bool(norm.isnan().any())
    assert torch.equal(grad_logits.isnan().all(1), bad)
    assert torch.equal(grad_grad.isnan().all(1), bad)
    assert bool(statistics[:3].isnan().all())
    gaps, runner_up = (
        simt.logit_gap(loss.logits, loss.target, None, -100)
        if cluster < 2
        else (
            gap,
            torch.where(bad, -1, 0),
        )
    )
    assert torch.equal(gaps.isnan(), bad)
    assert torch.equal(runner_up == -1, bad)

    # A nearest class must be another class.
    loss = Loss(3, 4, 50, reduction="none", nearest=True)
    assert loss.which is not None
    loss.which[0], loss.which[1] = loss.target[0], 9
    assert loss.run(simt)[0].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("p", NORMS)
def test_infinite_and_nan_rows(p: float) -> None:
    """As the reference has them, sample by sample; zero rows have margin gap / eps."""
    for variant in (AUTO, REREAD if p in SCALAR_NORMS else BLOCK):
        loss = Loss(5, 4, 70, p, reduction="none")
        loss.grad[0] = 0
        loss.grad[1, 3] = math.nan
        loss.grad[2, 69] = -INF
        loss.logits[3, 0] = math.nan
        ours = loss.run(Simt(variant))
        exact = loss.expected(wide=True)
        for out, right in zip(ours[:4], exact[:4], strict=True):
            assert torch.equal(out.isnan(), right.isnan())
            assert torch.equal(out.isinf(), right.isinf())
        assert bool(ours[6][1].isnan().all())
        assert not bool(ours[6][0].any())
        assert bool(ours[5][4].isfinite().all())
        assert bool(ours[6][4].isfinite().all())


@pytest.mark.parametrize("per_sample", [False, True])
def test_upstream(per_sample: bool) -> None:
    loss = Loss(5, 4, 33, 1, BF16, F32, weighted=True)
    upstream = torch.randn(5 if per_sample else 1)
    phi = loss.regularizer
    grad_logits, grad_grad = Simt().average_margin_loss_backward(
        upstream,
        *(loss.logits, loss.target, loss.grad, None, loss.weight, None),
        *(dual(1), 1e-6, 0.7, phi.code, phi.lo, phi.hi, 0.0, -100, True, True),
    )
    inputs = [loss.logits.double().requires_grad_(), loss.grad.double().requires_grad_()]
    assert loss.weight is not None
    found = reference.average_margin_loss(
        inputs[0],
        loss.target,
        inputs[1],
        regularizer=phi,
        mu=0.7,
        p=1,
        weight=loss.weight.double(),
        reduction="none",
    )
    exact = torch.autograd.grad((found.loss * upstream).sum(), inputs)
    for out, right in zip((grad_logits, grad_grad), exact, strict=True):
        assert_close("gradient", out, right, right.to(out.dtype))
