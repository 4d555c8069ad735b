"""Problems for the CUDA kernels in the emulator, and how answers are judged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from backends.simt import AUTO, BLOCK, REREAD, WARP, Simt, kernels, missing
from layouts import lay_out
from problems import NORMS as ALL_NORMS
from problems import SCALAR_NORMS
from torch import Tensor

from margin_ext import reference
from margin_ext.loss_settings import Reduction
from margin_ext.regularizers import Regularizer

EMULATED = [
    pytest.mark.skipif(missing() is not None, reason=missing() or "everything is there"),
    pytest.mark.usefixtures("restored_device"),
]

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INF = math.inf
# The emulator is slow, and 1.5 and 3 take the same kernels.
NORMS = tuple(p for p in ALL_NORMS if p != 1.5)
SCHEDULES = (0, 1, 2, 5)
POISONS = (0xFF, 0x7E)
GRADIENT_SCALE = 8
ADDITIVE = 5  # of RegularizerKind in csrc/core/regularizer.h


@pytest.fixture
def restored_device() -> Iterator[None]:
    """Tests change what the emulated device is."""
    device = kernels().device()
    names = ("number", "multiprocessors", "cluster_limit", "capturing")
    before = {name: getattr(device, name) for name in names}
    yield
    for name, value in before.items():
        setattr(device, name, value)


def emulate_multiprocessors(number: int) -> None:
    """Go over to a device with so many of them. Launchers remember devices by their numbers."""
    device = kernels().device()
    device.number = 20 + number % 40
    device.multiprocessors = number


def dual(p: float) -> float:
    return {1: INF, 2: 2.0, INF: 1.0}.get(p) or p / (p - 1)


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
    gradients: bool = True  # whether they are wanted
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
            self.gradients,
            self.gradients,
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
            if name.startswith("grad_") and not self.gradients:
                assert out.numel() == 0
                continue
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
