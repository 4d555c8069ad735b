"""Every op as a job that the fused kernels, the eager reference and a compiled one can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import Inputs, regularizer
from benchmarks.shapes import Shape
from benchmarks.timing import Contender
from margin_ext import functional, reference
from margin_ext.statistics import STATISTIC_NAMES

# The yardsticks, as names of contenders.
CLONE = "clone"
COPY = "copy"
NEGATION = "negation"

STEEPEST = 0.04  # of the coordinates share a step under p = 1

_SCALE = STATISTIC_NAMES.index("gradient_scale")

# Takes the tensors in place of attributes of Inputs: torch.compile then sees plain arguments.
Forward = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Job:
    """One op in one phase.

    Attributes:
        name: Unique.
        phase: "forward" (no gradients wanted), "backward" (alone) or "both".
        takes: Attributes of Inputs that the forward pass takes.
        seeds: The attribute that is the upstream of its first output.
        wanted: Attributes that gradients are wanted for.
        forward: Makes the forward pass from functional or reference.
        moved: Bytes that must be read and written, from the shape.
        limit: What the copy or clone stands for, in words.
    """

    name: str
    phase: str
    takes: tuple[str, ...]
    forward: Callable[[ModuleType, Shape], Forward]
    moved: Callable[[Shape], int]
    limit: str
    seeds: str = ""
    wanted: tuple[str, ...] = ()

    def contender(self, forward: Forward) -> Contender:
        """The job with this forward pass."""

        def arguments(x: Inputs) -> list[Tensor]:
            return [getattr(x, name) for name in self.takes]

        def without_graph(x: Inputs) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return forward(*arguments(x))

        def graph(x: Inputs) -> tuple[Tensor, list[Tensor], Tensor]:
            wanted = [getattr(x, name) for name in self.wanted]
            return forward(*arguments(x))[0], wanted, getattr(x, self.seeds)

        def gradients(state: tuple[Tensor, list[Tensor], Tensor]) -> tuple[Tensor, ...]:
            output, wanted, upstream = state
            return torch.autograd.grad(output, wanted, upstream)

        if self.phase == "forward":
            return Contender(without_graph)
        if self.phase == "backward":
            return Contender(gradients, before=graph)
        return Contender(lambda x: gradients(graph(x)))


def _std(shape: Shape, std: Tensor) -> Tensor | None:
    return std if shape.input_std else None


def _gap(api: ModuleType, shape: Shape) -> Forward:
    def run(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return tuple(api.logit_gap(logits, target, validate=False))

    return run


def _margin(api: ModuleType, shape: Shape) -> Forward:
    def run(gap: Tensor, grad: Tensor, std: Tensor) -> tuple[Tensor, ...]:
        return tuple(api.first_order_margin(gap, grad, p=shape.p, input_std=_std(shape, std)))

    return run


def _direction(api: ModuleType, shape: Shape) -> Forward:
    def run(grad: Tensor, factor: Tensor, base: Tensor) -> tuple[Tensor, ...]:
        return (api.dual_direction(grad, factor, p=shape.p, base=base),)

    return run


def _attack(api: ModuleType, shape: Shape) -> Forward:
    """A step out of the ball and the range, so that nothing may be left out.

    For p = 1 some coordinates share it.
    """
    steepest = max(1, round(STEEPEST * shape.size)) if shape.p == 1 else 1

    def run(
        base: Tensor, grad: Tensor, factor: Tensor, center: Tensor, std: Tensor
    ) -> tuple[Tensor, ...]:
        ends = grad.new_full((1,), -1.0), grad.new_full((1,), 1.0)
        return (
            api.attack_step(
                base,
                grad,
                factor,
                center,
                factor,
                p=shape.p,
                steepest=steepest,
                data_range=ends,
                input_std=_std(shape, std),
            ),
        )

    return run


def _additive(api: ModuleType, shape: Shape) -> Forward:
    def run(logits: Tensor, target: Tensor, grad: Tensor, std: Tensor) -> tuple[Tensor, ...]:
        given = _std(shape, std)
        out = api.additive_margin_loss(
            logits, target, grad, tau=1.0, p=shape.p, input_std=given, validate=False
        )
        return out.loss, out.margin, out.gap, out.norm, out.statistics.values_tensor

    return run


def _loss(api: ModuleType, shape: Shape) -> Forward:
    phi = regularizer(shape)

    def run(logits: Tensor, target: Tensor, grad: Tensor, std: Tensor) -> tuple[Tensor, ...]:
        given = _std(shape, std)
        out = api.average_margin_loss(
            logits, target, grad, regularizer=phi, p=shape.p, input_std=given, validate=False
        )
        return out.loss, out.margin, out.gap, out.norm, out.statistics.values_tensor

    return run


def _scaling(api: ModuleType, shape: Shape) -> Forward:
    def fused(logits: Tensor, grad: Tensor, upstream: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        torch.ops.margin_ext.scale_gradients_(logits, grad, upstream, seen)
        return logits, grad

    def plain(logits: Tensor, grad: Tensor, upstream: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        factor = upstream * seen[_SCALE]
        return logits.mul_(factor.to(logits.dtype)), grad.mul_(factor.to(grad.dtype))

    return fused if api is functional else plain


def _grad(times: int) -> Callable[[Shape], int]:
    return lambda shape: times * shape.grad_bytes


def _grad_and_logits(times: int) -> Callable[[Shape], int]:
    return lambda shape: times * (shape.grad_bytes + shape.logits_bytes)


_LOSS: dict[str, Any] = {
    "takes": ("logits", "target", "grad", "std"),
    "seeds": "upstream",
    "wanted": ("logits", "grad"),
    "forward": _loss,
}
_MARGIN: dict[str, Any] = {
    "takes": ("gap", "grad", "std"),
    "seeds": "factor",
    "wanted": ("gap", "grad"),
    "forward": _margin,
}

# The step's own job first: the others are its parts.
TRAINING_JOB = Job(
    "average_margin_loss, forward and backward",
    "both",
    moved=_grad_and_logits(2),
    limit="grad and logits read, their gradients written",
    **_LOSS,
)
ATTACK_JOB = Job(
    "attack_step",
    "forward",
    ("base", "grad", "factor", "center", "std"),
    _attack,
    _grad(4),
    limit="point, grad and center read, next point written",
)
PART_JOBS = (
    Job(
        "average_margin_loss, forward",
        "forward",
        moved=_grad_and_logits(1),
        limit="grad and logits read; evaluation, no gradients wanted",
        **_LOSS,
    ),
    Job(
        "average_margin_loss, backward",
        "backward",
        moved=_grad_and_logits(2),
        limit="as for both passes; the fused forward has stored the gradients already",
        **_LOSS,
    ),
    Job(
        "first_order_margin, forward",
        "forward",
        moved=_grad(1),
        limit="grad read",
        **_MARGIN,
    ),
    Job(
        "first_order_margin, backward",
        "backward",
        moved=_grad(2),
        limit="grad read, its gradient written",
        **_MARGIN,
    ),
    Job(
        "dual_direction",
        "forward",
        ("grad", "factor", "base"),
        _direction,
        _grad(3),
        limit="grad and base read, step written",
    ),
    ATTACK_JOB,
    Job(
        "additive_margin_loss, forward and backward",
        "both",
        moved=_grad_and_logits(2),
        limit="grad and logits read, their gradients written",
        **{**_LOSS, "forward": _additive},
    ),
    Job(
        "gradient scaling",
        "forward",
        ("logits", "grad", "minus_one", "statistics"),
        _scaling,
        _grad_and_logits(2),
        limit="stored gradients read and written in place, upstream not 1",
    ),
)
LOGITS_JOB = Job(
    "logit_gap",
    "forward",
    ("logits", "target"),
    _gap,
    lambda shape: shape.logits_bytes,
    limit="logits read",
)


def contenders(job: Job, shape: Shape, compiled: bool) -> dict[str, Contender]:
    """The clone, the fused kernels, the eager reference and, if wanted, the compiled one."""
    found = {
        CLONE: Contender(lambda x: x.moved.clone()),
        "fused": job.contender(job.forward(functional, shape)),
        "reference": job.contender(job.forward(reference, shape)),
    }
    if compiled:
        # One graph per shape, as a training loop with a fixed batch size gets.
        forward = torch.compile(job.forward(reference, shape), dynamic=False, fullgraph=True)
        found["compiled"] = job.contender(forward)
    return found


def negation() -> Contender:
    """One of torch's own elementwise kernels over as many bytes as the op must move.

    A clone is the driver's copy on CUDA. On an H200 that took 1.5 times as long for some sizes.
    """
    return Contender(lambda x: -x.moved)


def copy_into_old() -> Contender:
    """A copy of as many bytes as the op must move, into memory that was used before."""
    return Contender(lambda x: x.old.copy_(x.moved))
