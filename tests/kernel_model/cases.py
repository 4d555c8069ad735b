"""The calls that the model counts: each op's batches of the suite."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from backends.simt import Simt
from torch import Tensor

__all__ = [
    "CASES",
    "AttackStep",
    "Case",
    "ClassMargins",
    "DualDirection",
    "FirstOrderMargin",
    "LogitGap",
    "Loss",
    "Scale",
]

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
INF = float("inf")
TYPE_NAMES = {F32: "fp32", BF16: "bf16", F16: "fp16"}
# As the arguments of a template in a mangled name.
MANGLED = {F32: "If", F16: r"IN\w*?7Float16E", BF16: r"IN\w*?8BFloat16E"}


def dual(p: float) -> float:
    """Return the exponent that the ops take for a threat norm; 0 stands for infinity."""
    return {1.0: 0.0, 2.0: 2.0, INF: 1.0}[p]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call of an op.

    The kernel of every op takes samples in turn, and its parameters begin with the batch size. So
    the difference of two launches, with fewer and with more samples, shows what a sample costs.

    Attributes:
        size: D, the elements of a row.
        batch: Its samples.
        dtype: Of the rows.
        p: The threat norm.
        scaled: Whether channels have factors.
    """

    op: ClassVar[str]
    source: ClassVar[str]
    kernel: ClassVar[str]
    # The launches that are followed: their numbers of samples, and the groups that share these.
    samples: ClassVar[tuple[int, int]] = (2, 3)
    groups: ClassVar[int] = 1
    # The allocations of a call that are no outputs.
    scratch: ClassVar[int] = 0

    batch: int
    size: int
    dtype: torch.dtype = F32
    p: float = 2.0
    scaled: bool = False

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.size * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Return the bytes of a sample: each input read once, each output written once."""
        raise NotImplementedError

    @property
    def reread(self) -> int:
        """Return the bytes that a sample reads again, and that the cache should hold meanwhile."""
        return 0

    def pattern(self, variant: int) -> str:
        """Return what finds the kernel among mangled names."""
        return rf"{self.kernel}{MANGLED[self.dtype]}.*VariantE{variant}E"

    def sharing(self, report: Any) -> int:
        """Return the threads of a block that share a sample, for a launch."""
        return int(report.threads) if report.variant else 32

    def with_samples(self, parameters: bytes, samples: int) -> bytes:
        """Return a launch's parameters with another batch size."""
        raw = bytearray(parameters)
        struct.pack_into("<q", raw, 0, samples)
        return bytes(raw)

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op."""
        raise NotImplementedError

    def details(self) -> list[str]:
        """Return what distinguishes the case, for its name."""
        extra = [] if self.p == 2 else [f"p {self.p:g}"]
        return extra + (["input_std"] if self.scaled else [])

    def __str__(self) -> str:
        """Return a short name."""
        shape = f"{self.batch} x {self.size} {TYPE_NAMES[self.dtype]}"
        return ", ".join([shape, *self.details()])


@dataclass
class Inputs:
    """The tensors of a call. They live as long as the launch is followed: addresses are real.

    Only what is followed, the first samples, has values.
    """

    case: Case
    made: list[Tensor] = field(default_factory=list)
    outputs: int = 0

    def __post_init__(self) -> None:
        """Begin with the same numbers for each case."""
        torch.manual_seed(0)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return the tensor, which is kept."""
        self.made.append(tensor)
        return tensor

    def output(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for an output."""
        self.outputs += 1
        return self.empty(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory."""
        return self.keep(torch.empty(shape, dtype=dtype))

    def rows(self, *inner: int, spread: float = 1.0) -> Tensor:
        """Return [B, ..., D]."""
        case = self.case
        rows = self.empty((case.batch, *inner, case.size), case.dtype)
        rows[:8].normal_(0, spread)
        return rows.view(case.batch, *inner, 3, -1) if case.scaled else rows

    def vector(self, value: float, *inner: int) -> Tensor:
        """Return one number for each sample."""
        return self.keep(torch.full((self.case.batch, *inner), value))

    def scale(self) -> Tensor | None:
        """Return the channels' factors."""
        return self.keep(torch.rand(3) + 0.5) if self.case.scaled else None


@dataclass(frozen=True, kw_only=True)
class Loss(Case):
    """average_margin_loss with both gradients."""

    op: ClassVar[str] = "average_margin_loss"
    source: ClassVar[str] = "loss.cu"
    kernel: ClassVar[str] = "loss_kernel"
    scratch: ClassVar[int] = 1  # the blocks' totals

    classes: int = 10
    additive: bool = False

    @property
    def bytes(self) -> int:
        """Return those of row and logits, in and out."""
        return 2 * (self.row_bytes + self.classes * self.dtype.itemsize)

    def pattern(self, variant: int) -> str:
        """Return what finds the kernel that has a row."""
        return super().pattern(variant) + ".*RowUseE2E"

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op with the mean as reduction."""
        logits = made.keep(torch.randn(self.batch, self.classes).to(self.dtype))
        target = made.keep(torch.randint(self.classes, (self.batch,)))
        regularizer, hi = (5, 0.5) if self.additive else (0, 3.0)
        simt.average_margin_loss(
            logits,
            target,
            made.rows(),
            None,
            None,
            made.scale(),
            dual(self.p),
            1e-6,
            1.0,
            regularizer,
            0.0 if self.additive else -3.0,
            hi,
            0.0,
            -100,
            1,
            True,
            True,
        )

    def details(self) -> list[str]:
        """Return what is unusual."""
        extra = ["additive margin"] if self.additive else []
        extra += [] if self.classes == 10 else [f"C {self.classes}"]
        return extra + super().details()


@dataclass(frozen=True, kw_only=True)
class AttackStep(Case):
    """attack_step with a ball around another center, and a data range."""

    op: ClassVar[str] = "attack_step"
    source: ClassVar[str] = "attack_step.cu"
    kernel: ClassVar[str] = "attack_kernel"

    centered: bool = True  # around another point than x
    steepest: int = 1

    @property
    def bytes(self) -> int:
        """Return those of x, grad and center, and of the output."""
        return (4 if self.centered else 3) * self.row_bytes

    @property
    def reread(self) -> int:
        """Return those that are read in more than one pass."""
        return (3 if self.centered else 2) * self.row_bytes

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op. The l1 ball is so wide that its threshold needs no search."""
        x, grad = made.rows(), made.rows()
        center = made.rows() if self.centered else None
        radius = made.vector(1e9 if self.p == 1 else 1.0)
        low, high = (made.keep(torch.full((3 if self.scaled else 1,), v)) for v in (-1.0, 1.0))
        simt.attack_step(
            x,
            grad,
            made.vector(0.5),
            center,
            radius,
            dual(self.p),
            self.steepest,
            low,
            high,
            made.scale(),
        )

    def details(self) -> list[str]:
        """Return what is unusual."""
        extra = [] if self.centered else ["no center"]
        extra += [] if self.steepest == 1 else [f"steepest {self.steepest}"]
        return extra + super().details()


@dataclass(frozen=True, kw_only=True)
class ClassMargins(Case):
    """class_margins; a sample is all of its classes."""

    op: ClassVar[str] = "class_margins"
    source: ClassVar[str] = "class_margins.cu"
    kernel: ClassVar[str] = "class_margins_kernel"
    # Two blocks, of which the one that is followed is not the last: where a block serves a row, the
    # last one looks for the nearest classes, once a launch. So two samples more are one a block.
    samples: ClassVar[tuple[int, int]] = (2, 4)
    groups: ClassVar[int] = 2

    classes: int = 10
    norms: tuple[float, ...] = (2.0,)

    @property
    def bytes(self) -> int:
        """Return those of the rows."""
        return self.classes * self.row_bytes

    def sharing(self, report: Any) -> int:
        """Return all threads of a block."""
        return int(report.threads)

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op."""
        gap = made.vector(1.0, self.classes)
        simt.class_margins(gap, made.rows(self.classes), [dual(p) for p in self.norms], None)

    def details(self) -> list[str]:
        """Return classes and norms."""
        return [f"{self.classes} classes", "p " + " ".join(f"{p:g}" for p in self.norms)]


@dataclass(frozen=True, kw_only=True)
class FirstOrderMargin(Case):
    """first_order_margin, which only reads."""

    op: ClassVar[str] = "first_order_margin"
    source: ClassVar[str] = "margin.cu"
    kernel: ClassVar[str] = "margin_kernel"

    @property
    def bytes(self) -> int:
        """Return those of the row."""
        return self.row_bytes

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op."""
        simt.first_order_margin(made.vector(1.0), made.rows(), dual(self.p), 1e-6, made.scale())


@dataclass(frozen=True, kw_only=True)
class DualDirection(Case):
    """dual_direction, added to a base or not."""

    op: ClassVar[str] = "dual_direction"
    source: ClassVar[str] = "direction.cu"
    kernel: ClassVar[str] = "direction_kernel"

    based: bool = False

    @property
    def bytes(self) -> int:
        """Return those of the row, of the output, and of the base."""
        return (3 if self.based else 2) * self.row_bytes

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op."""
        base = made.rows() if self.based else None
        simt.dual_direction(made.rows(), made.vector(1.0), base, dual(self.p), made.scale())

    def details(self) -> list[str]:
        """Return what is unusual."""
        return (["base"] if self.based else []) + super().details()


@dataclass(frozen=True, kw_only=True)
class LogitGap(Case):
    """logit_gap, for which a row is the logits."""

    op: ClassVar[str] = "logit_gap"
    source: ClassVar[str] = "logit_gap.cu"
    kernel: ClassVar[str] = "logit_gap_kernel"

    @property
    def bytes(self) -> int:
        """Return those of the logits."""
        return self.row_bytes

    def pattern(self, variant: int) -> str:
        """Return what finds the kernel: all but float64 share one."""
        return rf"{self.kernel}If.*VariantE{variant}E"

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op."""
        target = made.keep(torch.randint(self.size, (self.batch,)))
        simt.logit_gap(made.rows(), target, None, -100)


@dataclass(frozen=True, kw_only=True)
class Scale(Case):
    """scale_gradients_ where the scale is not 1. The whole grid shares one array."""

    op: ClassVar[str] = "scale_gradients_"
    source: ClassVar[str] = "scale.cu"
    kernel: ClassVar[str] = "scale_kernel"
    samples: ClassVar[tuple[int, int]] = (16, 32)

    # In the parameters: the second array's number of elements.
    SIZE: ClassVar[int] = 40

    @property
    def bytes(self) -> int:
        """Return those of the row, in and out."""
        return 2 * self.row_bytes

    def pattern(self, variant: int) -> str:
        """Return what finds the kernel: all but float64 share one."""
        del variant
        return f"{self.kernel}If"

    def with_samples(self, parameters: bytes, samples: int) -> bytes:
        """Return the parameters for another number of elements."""
        raw = bytearray(parameters)
        struct.pack_into("<q", raw, self.SIZE, samples * self.size)
        return bytes(raw)

    def call(self, simt: Simt, made: Inputs) -> None:
        """Call the op, without logits."""
        none, upstream = made.empty((0,), self.dtype), made.keep(torch.tensor([2.0]))
        simt.scale_gradients_(none, made.rows(), upstream, made.keep(torch.ones(9)))


def _both(kind: type[Case], batch: int, size: int, **settings: Any) -> list[Case]:
    """The same case in 32 and in 16 bits."""
    return [kind(batch=batch, size=size, dtype=dtype, **settings) for dtype in (F32, BF16)]


CASES: tuple[Case, ...] = (
    *(Loss(batch=4096, size=784, dtype=kind) for kind in (F32, BF16, F16)),
    *(Loss(batch=1024, size=3072, dtype=kind) for kind in (F32, BF16, F16)),
    *_both(Loss, 512, 12_288),
    *_both(Loss, 128, 150_528),
    Loss(batch=128, size=150_528, dtype=BF16, classes=1000),
    Loss(batch=1024, size=3072, p=1.0),
    Loss(batch=1024, size=3072, p=INF),
    Loss(batch=1024, size=3072, scaled=True),
    Loss(batch=128, size=150_528, scaled=True),
    *_both(Loss, 4096, 784, additive=True),
    *_both(Loss, 1024, 3072, additive=True),
    *_both(Loss, 128, 150_528, additive=True),
    *(
        case
        for p in (2.0, INF, 1.0)
        for batch, size in ((4096, 784), (1024, 3072), (128, 150_528))
        for case in _both(AttackStep, batch, size, p=p)
    ),
    AttackStep(batch=1024, size=3072, centered=False),
    AttackStep(batch=1024, size=3072, p=INF, scaled=True),
    AttackStep(batch=4096, size=784, p=1.0, steepest=96),
    *(
        case
        for batch, size in ((512, 784), (128, 3072), (16, 150_528))
        for norms in ((2.0,), (1.0, 2.0, INF))
        for case in _both(ClassMargins, batch, size, norms=norms)
    ),
    *_both(FirstOrderMargin, 4096, 784),
    *_both(FirstOrderMargin, 1024, 3072),
    *_both(FirstOrderMargin, 128, 150_528),
    *_both(DualDirection, 4096, 784),
    *_both(DualDirection, 1024, 3072, based=True),
    *_both(DualDirection, 128, 150_528, based=True),
    LogitGap(batch=4096, size=10),
    *_both(LogitGap, 1024, 1000),
    *_both(Scale, 1024, 3072),
)
