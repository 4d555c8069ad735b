"""Launches and bytes of the fused ops beside the same in eager PyTorch, by count.

    python -m benchmarks.traffic

Every operator that torch dispatches counts as a launch, except those that only make a view. It is
counted to read each of its tensors once and to write its result once, so several passes inside of
an operator (a sort, the norms of the fused step) count once: the figures are lower bounds. Bytes
are in units of D e, the bytes of a row; tensors smaller than the rows do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.inputs import Inputs, random_inputs
from benchmarks.jobs import STEEPEST
from benchmarks.shapes import Shape
from margin_ext import functional, reference
from margin_ext.threat import ThreatModel

__all__ = ["Traffic", "counted", "table"]

SHAPE = Shape(8, (3, 32, 32), 10, "a few CIFAR images: counts do not depend on the batch")
P = (2.0, math.inf, 1.0)


@dataclass
class Traffic:
    """What a call did.

    Attributes:
        launches: Operators that compute something.
        rows: Reads and writes of whole batches of rows.
    """

    launches: int = 0
    rows: float = 0.0


class _Counting(TorchDispatchMode):
    def __init__(self, row_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.row_bytes = row_bytes
        self.found = Traffic()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        makes_view = any(a.alias_info and not a.alias_info.is_write for a in func._schema.returns)
        if makes_view or func is torch.ops.aten.detach.default:
            return out
        self.found.launches += 1
        written = [t for t in given if func._schema.is_mutable and t is given[0]]
        for tensor in [*given, *results, *written]:
            size = tensor.untyped_storage().nbytes() if tensor.numel() else 0
            if size >= self.row_bytes:
                self.found.rows += tensor.numel() * tensor.element_size() / self.row_bytes
        return out


def counted(call: Callable[[], object], row_bytes: int) -> Traffic:
    """What a call dispatches."""
    counting = _Counting(row_bytes)
    with counting:
        call()
    return counting.found


def _step(api: ModuleType, p: float, x: Inputs) -> Callable[[], object]:
    ends = torch.zeros(1), torch.ones(1)
    steepest = 1 if p != 1 else round(STEEPEST * SHAPE.size)

    def call() -> object:
        with torch.no_grad():
            return api.attack_step(
                *(x.base, x.grad, x.factor, x.center, x.factor),
                p=p,
                steepest=steepest,
                data_range=ends,
            )

    return call


def _additive(api: ModuleType, p: float, x: Inputs) -> Callable[[], object]:
    def call() -> object:
        loss = api.additive_margin_loss(
            x.logits, x.target, x.grad, tau=1.0, p=p, validate=False
        ).loss
        return torch.autograd.grad(loss, (x.logits, x.grad))

    return call


def table() -> str:
    """The counts as Markdown."""
    lines = [
        "| op | launches, fused | eager | rows moved (D e), fused | eager |",
        "|---|---|---|---|---|",
    ]
    x = random_inputs(SHAPE, "cpu", 4)
    for name, make in (("attack_step", _step), ("additive_margin_loss, both passes", _additive)):
        for p in P:
            ours, plain = (
                counted(make(api, p, x), SHAPE.grad_bytes) for api in (functional, reference)
            )
            lines.append(
                f"| {name}, {ThreatModel(p=p).name} | {ours.launches} | {plain.launches} "
                f"| {ours.rows:.0f} | {plain.rows:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
