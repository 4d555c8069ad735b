"""The CUDA kernels, executed by the emulator and judged by the reference in float64.

A result may be off by at most twice what the reference in the same types is off, and a rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from backends.simt import AUTO, BLOCK, REREAD, WARP, RefusedError, Simt, kernels, missing
from hypothesis import given
from hypothesis import strategies as st
from layouts import DENSE, lay_out
from problems import NORMS as ALL_NORMS
from problems import REGULARIZERS, SCALAR_NORMS
from torch import Tensor

from margin_ext import reference
from margin_ext.loss_settings import Reduction
from margin_ext.reference.attack_step import attack_step
from margin_ext.regularizers import Regularizer

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "everything is there")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INF = math.inf
# The emulator is slow, and 1.5 and 3 take the same kernels.
NORMS = tuple(p for p in ALL_NORMS if p != 1.5)
SCHEDULES = (0, 1, 2, 5)
POISONS = (0xFF, 0x7E)
GRADIENT_SCALE = 8
ADDITIVE = 5  # of RegularizerKind in csrc/core/regularizer.h


def dual(p: float) -> float:
    return {1: INF, 2: 2.0, INF: 1.0}.get(p) or p / (p - 1)


@pytest.fixture(autouse=True)
def _restored_device() -> Iterator[None]:
    """Tests change what the emulated device is."""
    device = kernels().device()
    names = ("multiprocessors", "cluster_limit", "capturing")
    before = {name: getattr(device, name) for name in names}
    yield
    for name, value in before.items():
        setattr(device, name, value)


@dataclass
class Guarded:
    """Allocates outputs ``shift`` elements off alignment, with sentinels before and after them."""

    shift: int = 0
    made: list[tuple[Tensor, int, int]] = field(default_factory=list)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size, pad = math.prod(shape), 64 // dtype.itemsize
        storage = torch.full((size + 2 * pad,), -77, dtype=dtype)
        start = pad + (self.shift if dtype.is_floating_point else 0)
        self.made.append((storage, start, start + size))
        inside = storage[start : start + size]
        inside.fill_(math.nan if dtype.is_floating_point else -7)
        return inside.view(shape)

    def check(self) -> None:
        for storage, start, end in self.made:
            assert bool((storage[:start] == -77).all()), "written before an output's start"
            assert bool((storage[end:] == -77).all()), "written past an output's end"


def assert_close(name: str, ours: Tensor, exact: Tensor, same: Tensor) -> None:
    """|ours - exact| <= 2 |same - exact| in the largest norm, plus some roundings of ours' type."""
    assert ours.shape == exact.shape, name
    # Nothing here is more exact than float64.
    eps = torch.finfo(ours.dtype).eps * (64 if ours.dtype == F64 else 4)
    ours, exact, same = ours.double(), exact.detach().double(), same.detach().double()
    assert torch.equal(ours.isnan(), exact.isnan()), f"{name}: NaN where none belongs, or missing"
    finite = exact.isfinite()
    if not bool(finite.any()):
        return
    unit = eps * float(exact[finite].abs().max())
    allowed = 2 * float((same - exact)[finite].abs().max()) + unit
    error = float((ours - exact)[finite].abs().max())
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@dataclass
class Loss:
    """A problem for average_margin_loss, and how to judge an answer."""

    batch: int = 3
    classes: int = 7
    size: int = 40
    p: float = 2
    dtype: torch.dtype = F32
    logits_dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None  # of a sample
    regularizer: Regularizer = field(default_factory=lambda: Regularizer.softplus(0.7))
    smoothing: float = 0.0
    weighted: bool = False
    nearest: bool = False
    ignored: bool = False
    scaled: bool = False
    reduction: str = "mean"
    with_grad: bool = True
    layout: str = "contiguous"
    tau: float | None = None  # of the additive margin, in place of the regularizer

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.size + self.classes)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=F64)

        b, c = self.batch, self.classes
        logits_dtype = self.logits_dtype or self.dtype
        self.acc = F64 if logits_dtype == F64 else F32
        self.logits = normal(b, c).to(logits_dtype)
        self.target = torch.randint(c, (b,), generator=generator)
        self.which = (self.target + 1) % c if self.nearest else None
        if self.ignored:
            self.target[::3] = -100
        self.weight = normal(c).abs().add(0.5).to(self.acc) if self.weighted else None
        shape = self.shape or (self.size,)
        self.grad = lay_out(normal(b, *shape).to(self.dtype), self.layout)
        self.scale = normal(shape[0]).exp().to(self.acc) if self.scaled else None

    def run(self, simt: Simt) -> tuple[Tensor, ...]:
        phi = self.regularizer
        return simt.average_margin_loss(
            self.logits,
            self.target,
            self.grad if self.with_grad else None,
            self.which,
            self.weight,
            self.scale if self.with_grad else None,
            *(dual(self.p), 1e-6, 0.7),
            *((phi.code, phi.lo, phi.hi) if self.tau is None else (ADDITIVE, 0.0, self.tau)),
            *(self.smoothing, -100),
            get_args(Reduction).index(self.reduction),
            True,
            True,
        )

    def expected(self, wide: bool) -> list[Tensor]:
        """The reference's answers, computed in float64 or in the tensors' own types."""

        def cast(x: Tensor | None) -> Tensor | None:
            return x.double() if wide and x is not None else x

        logits, grad = cast(self.logits), cast(self.grad)
        assert logits is not None
        assert grad is not None
        inputs = [logits.clone().requires_grad_(), grad.clone().requires_grad_()]
        settings: dict[str, Any] = {
            "mu": 0.7,
            "p": self.p,
            "weight": cast(self.weight),
            "label_smoothing": self.smoothing,
            "reduction": self.reduction,
            "input_std": None if self.scale is None or not self.with_grad else 1 / cast(self.scale),
        }
        if self.tau is not None:
            found = reference.additive_margin_loss(
                inputs[0], self.target, inputs[1], tau=self.tau, **settings
            )
        else:
            found = reference.average_margin_loss(
                inputs[0],
                self.target,
                inputs[1] if self.with_grad else None,
                regularizer=self.regularizer,
                nearest=self.which,
                **settings,
            )
        gradients = torch.autograd.grad(found.loss.sum(), inputs, allow_unused=True)
        values = found.statistics.values_tensor.clone()
        if self.tau is not None:  # what the op's stored gradients lack is the same of every loss
            plain = reference.average_margin_loss(
                logits, self.target, regularizer=self.regularizer, **settings
            )
            values[GRADIENT_SCALE] = plain.statistics.values_tensor[GRADIENT_SCALE]
        outputs = [found.loss, found.margin, found.gap, found.norm, values]
        return [*outputs, *(g if g is not None else logits.new_empty(0) for g in gradients)]

    def check(self, simt: Simt) -> tuple[Tensor, ...]:
        ours = self.run(simt)
        scale = ours[4][GRADIENT_SCALE].double()
        names = ("loss", "margin", "gap", "norm", "statistics", "grad_logits", "grad_grad")
        judges = zip(self.expected(wide=True), self.expected(wide=False), strict=True)
        for name, out, (exact, same) in zip(names, ours, judges, strict=True):
            # Stored are the gradients of the sum / B; times the scale they are the loss's.
            divisor = scale if name.startswith("grad") else 1
            assert_close(
                f"{name} of {self}", out, exact.double() / divisor, same.double() / divisor
            )
        return ours


def ways(p: float, dtype: torch.dtype) -> list[tuple[int, int]]:
    """Every variant and cluster size that a norm and type has kernels for."""
    if p in SCALAR_NORMS:
        return [(AUTO, 0), (REREAD, 1), (REREAD, 2), (REREAD, 4)]
    found = [(AUTO, 0), (BLOCK, 1), (BLOCK, 2), (BLOCK, 3), (BLOCK, 8)]
    return found if dtype == F64 else [*found, (WARP, 0)]


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
    kernels().device().multiprocessors = 2
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


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_additive_margin(dtype: torch.dtype, p: float) -> None:
    """Every variant; classes for one warp, for all warps of a block, and for a cluster."""
    for number, (variant, cluster) in enumerate(ways(p, dtype)):
        simt = Simt(variant, cluster, SCHEDULES[number % 4], POISONS[number % 2])
        for classes in (2, 300):
            smoothing = 0.1 if (number + classes) % 3 == 0 else 0.0
            Loss(3, classes, 500, p, dtype, smoothing=smoothing, tau=0.4).check(simt)


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_additive_margin_with_weights_and_ignored_samples(reduction: str) -> None:
    for variant, smoothing in ((AUTO, 0.3), (BLOCK, 0.0), (BLOCK, 0.3)):
        for shape in ((30,), (3, 5, 9)):
            Loss(
                7,
                4,
                shape=shape,
                size=30,
                reduction=reduction,
                weighted=True,
                ignored=True,
                scaled=len(shape) > 1,
                smoothing=smoothing,
                tau=1.5,
            ).check(Simt(variant))


def test_additive_margin_at_extremes() -> None:
    """Masked classes, certain and hopeless logits, a zero row, a row without bounds."""
    rows = [
        [1.0, -INF, -INF, -INF],
        [1.0, -INF, 0.5, 0.0],
        [200.0, 0.0, -1.0, 0.0],
        [-200.0, 0.0, 1.0, 0.0],
        [90.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5, 0.5],
        [1.0, 2.0, 0.5, 0.0],
    ]
    for variant, cluster in ((WARP, 0), (BLOCK, 1), (BLOCK, 2)):
        loss = Loss(len(rows), 4, 20, tau=5.0)
        loss.logits, loss.target = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64)
        loss.grad[0] = loss.grad[-1] = 0
        loss.grad[4] = 20 / math.sqrt(20)  # lowered by 100
        loss.check(Simt(variant, cluster))


def test_additive_margin_of_bad_labels() -> None:
    loss = Loss(4, 5, 30, tau=1.0)
    right = loss.run(Simt())
    loss.target[1] = 7
    loss.reduction = "none"
    out = loss.run(Simt())
    for i in (0, 1, 2, 5, 6):
        assert bool(out[i][1].isnan().all())
    torch.testing.assert_close(out[2][[0, 2, 3]], right[2][[0, 2, 3]])


def test_additive_margin_needs_a_row() -> None:
    with pytest.raises(RefusedError):
        Loss(4, 5, 30, tau=1.0, with_grad=False).run(Simt())


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
    kernels().device().multiprocessors = 1
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


def test_attack_step_on_a_broken_gradient() -> None:
    x, grad = torch.randn(3, 40), torch.randn(3, 40)
    grad[1, 7] = math.nan
    for p in (1.0, 2.0, INF):
        out = Simt().attack_step(
            x, grad, torch.ones(3), x, torch.ones(3), dual(p), 1, None, None, None
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


def test_what_does_not_exist_is_refused() -> None:
    for p, size, simt in (
        (2, 4097, Simt(WARP)),  # a row too long for a warp
        (3, 20, Simt(BLOCK)),  # general q is read twice
        (2, 20, Simt(REREAD)),  # and nothing else is
        (2, 20, Simt(BLOCK, 8)),  # blocks without a pack
    ):
        with pytest.raises(RefusedError):
            Loss(1, 3, size, p).run(simt)


def test_tickets() -> None:
    """Eager launches take turns; captured ones have counters of their own."""
    module = kernels()
    eager = [module.next_ticket() for _ in range(1100)]
    assert set(eager) == set(range(1024))
    assert all(b == (a + 1) % 1024 for a, b in itertools.pairwise(eager))
    module.device().capturing = True
    captured = [module.next_ticket() for _ in range(50)]
    assert len(set(captured)) == 50
    assert min(captured) >= 1024
    Loss(3, 3, 8).check(Simt())


H200: dict[str, Any] = {
    "multiprocessors": 132,
    "shared_per_block": 227 << 10,
    "shared_per_multiprocessor": 228 << 10,
    "max_cluster": 8,
}


@pytest.mark.parametrize(
    ("row_bytes", "batch", "variant", "cluster", "threads"),
    [
        (784 * 4, 128, WARP, 1, 32),  # MNIST: a warp on every multiprocessor
        (784 * 4, 60_000, WARP, 1, 128),
        (3072 * 4, 128, BLOCK, 1, 256),  # CIFAR
        (3072 * 4, 1024, WARP, 1, 128),
        (3072 * 2, 128, BLOCK, 1, 128),
        (12_288 * 4, 512, BLOCK, 1, 256),
        (12_288 * 4, 1024, BLOCK, 1, 128),
        (150_528 * 4, 128, BLOCK, 8, 256),  # ImageNet
        (150_528 * 4, 1, BLOCK, 8, 256),
        (10_000_000 * 4, 2, BLOCK, 8, 256),
    ],
)
def test_policy_on_an_h200(
    row_bytes: int, batch: int, variant: int, cluster: int, threads: int
) -> None:
    plan = kernels().plan(**H200, batch=batch, row_bytes=row_bytes, classes=10)
    assert (plan.variant, plan.cluster_size, plan.threads) == (variant, cluster, threads)


@given(
    shared=st.sampled_from([48, 64, 99, 163, 227]),
    max_cluster=st.sampled_from([1, 2, 4, 8]),
    multiprocessors=st.integers(1, 200),
    batch=st.integers(1, 2**40),
    row_bytes=st.integers(2, 2**34),
    classes=st.integers(0, 100_000),
    pack_bytes=st.sampled_from([0, 1, 2, 16]),
)
def test_every_plan_can_be_launched(
    shared: int,
    max_cluster: int,
    multiprocessors: int,
    batch: int,
    row_bytes: int,
    classes: int,
    pack_bytes: int,
) -> None:
    plan = kernels().plan(
        multiprocessors=multiprocessors,
        shared_per_block=shared << 10,
        shared_per_multiprocessor=(shared + 1) << 10,
        max_cluster=max_cluster,
        batch=batch,
        row_bytes=row_bytes,
        classes=classes,
        pack_bytes=pack_bytes,
    )
    assert plan.shared_bytes + 4096 <= shared << 10
    assert 1 <= plan.cluster_size <= max_cluster
    assert plan.blocks % plan.cluster_size == 0
    assert 1 <= plan.blocks // plan.cluster_size <= min(batch, 4096)
    assert plan.threads in (32, 64, 96, 128, 256)
    kept = -(-(row_bytes // 16) // plan.cluster_size) * pack_bytes
    if plan.variant == WARP:
        assert row_bytes <= 16_384
        assert plan.shared_bytes == -(-kept // 16) * 16 * (plan.threads // 32)
    else:
        # All of the slice, or what there is room for.
        assert plan.shared_bytes in (-(-kept // 16) * 16, plan.shared_bytes // 1024 * 1024)
        assert plan.shared_bytes <= kept + 16
