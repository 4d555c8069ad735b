"""The CUDA kernels as the emulator executes them, with the signatures of torch.ops.margin_ext.

Tensors are CPU tensors. A ``Simt`` holds the settings: variant, cluster size and schedule, what
fresh shared memory holds, and how outputs are allocated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from simt import kernel_library, toolchain
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.statistics import STATISTIC_NAMES

__all__ = [
    "AUTO",
    "BLOCK",
    "REREAD",
    "WARP",
    "RefusedError",
    "Simt",
    "kernels",
    "missing",
]

# The numbers of `Variant` in csrc/cuda/variants.h. A cluster is a block variant with a size.
AUTO, WARP, BLOCK, REREAD = -1, 0, 1, 2

# The order of `Dtype` in csrc/core/arguments.h.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

missing = kernel_library.missing


class RefusedError(ValueError):
    """The launcher does not serve these arguments with the variant that was asked for."""


@cache
def kernels() -> Any:
    """The compiled module; MARGIN_EXT_SIMT_SANITIZE=1 chooses the one under sanitizers."""
    sanitize = os.environ.get("MARGIN_EXT_SIMT_SANITIZE") == "1"
    return kernel_library.load(toolchain.SANITIZE if sanitize else kernel_library.PLAIN)


def _grad(rows: Any, grad: Tensor, scale: Tensor | None) -> None:
    rows.data = grad.data_ptr()
    rows.dtype = DTYPES.index(grad.dtype)
    rows.batch_stride = grad.stride(0)
    rows.size = math.prod(grad.shape[1:])
    if scale is not None:
        rows.channels.scale = scale.data_ptr()
        rows.channels.count = scale.numel()
        rows.channels.stride = grad.stride(1) if grad.dim() > 1 and grad.shape[1] > 1 else 1


def _logits(
    rows: Any, logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
) -> None:
    assert logits.stride(1) == 1
    assert target.is_contiguous()
    rows.data = logits.data_ptr()
    rows.dtype = DTYPES.index(logits.dtype)
    rows.batch_stride = logits.stride(0)
    rows.classes = logits.shape[1]
    rows.target = target.data_ptr()
    rows.nearest = 0 if nearest is None else nearest.data_ptr()
    rows.ignore_index = ignore_index


def _poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What an op must write wholly: integers get a number that no class has."""
    value = math.nan if dtype.is_floating_point else -7
    return torch.full(shape, value, dtype=dtype)


@dataclass
class Simt:
    """One way of executing the ops.

    Attributes:
        variant: AUTO, WARP, BLOCK or REREAD.
        cluster_size: 1 to 8; 0: the policy chooses.
        schedule: In which order threads run (tests/simt/README.md).
        poison: The byte that fresh shared memory is filled with.
        allocate: Makes an output of a shape and type, with the samples one after another.
        report: What the last op launched.
    """

    variant: int = AUTO
    cluster_size: int = 0
    schedule: int = 0
    poison: int = 0xFF
    allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] = _poisoned
    report: Any = field(default=None, compare=False)

    def _launch(self, op: str, *arguments: Any) -> None:
        module = kernels()
        module.set_schedule(self.schedule)
        module.set_poison(self.poison)
        try:
            self.report = getattr(module, op)(*arguments, self.variant, self.cluster_size)
        except ValueError as error:
            raise RefusedError(str(error)) from None

    def logit_gap(
        self, logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        batch = logits.shape[0]
        gap = self.allocate((batch,), accumulation_dtype(logits))
        runner_up = self.allocate((batch,), torch.int64)
        a = kernels().LogitGapArguments()
        a.batch = batch
        _logits(a.logits, logits, target, nearest, ignore_index)
        a.gap, a.runner_up = gap.data_ptr(), runner_up.data_ptr()
        self._launch("logit_gap", a)
        return gap, runner_up

    def first_order_margin(
        self, gap: Tensor, grad: Tensor, q: float, eps: float, input_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch = grad.shape[0]
        margin = self.allocate((batch,), accumulation_dtype(grad))
        norm = self.allocate((batch,), accumulation_dtype(grad))
        a = kernels().MarginArguments()
        a.batch, a.eps, a.gap = batch, eps, gap.data_ptr()
        a.norm.q = q
        _grad(a.grad, grad, input_scale)
        a.margin, a.norm_out = margin.data_ptr(), norm.data_ptr()
        self._launch("first_order_margin", a)
        return margin, norm

    def class_margins(
        self, gap: Tensor, grad: Tensor, q: list[float], input_scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, classes = grad.shape[:2]
        margin, norm = (
            self.allocate((len(q), batch, classes), accumulation_dtype(grad)) for _ in range(2)
        )
        nearest = self.allocate((len(q), batch), torch.int64)
        a = kernels().ClassMarginArguments()
        a.batch, a.classes, a.norms = batch, classes, len(q)
        for p, exponent in enumerate(q):
            a.norm(p).q = exponent
        _grad(a.grad, grad[:, 0], input_scale)
        a.grad.batch_stride, a.class_stride = grad.stride(0), grad.stride(1)
        a.gap, a.nearest = gap.data_ptr(), nearest.data_ptr()
        a.margin, a.norm_out = margin.data_ptr(), norm.data_ptr()
        self._launch("class_margins", a)
        return margin, norm, nearest

    def dual_direction(
        self,
        grad: Tensor,
        factor: Tensor,
        base: Tensor | None,
        q: float,
        input_scale: Tensor | None,
    ) -> Tensor:
        out = self._like_samples(grad)
        a = kernels().DirectionArguments()
        a.batch, a.factor = grad.shape[0], factor.data_ptr()
        a.norm.q = q
        _grad(a.grad, grad, input_scale)
        if base is not None:
            a.base, a.base_stride = base.data_ptr(), base.stride(0)
        a.out, a.out_stride = out.data_ptr(), out.stride(0)
        self._launch("dual_direction", a)
        return out

    def attack_step(
        self,
        x: Tensor,
        grad: Tensor | None,
        length: Tensor | None,
        center: Tensor | None,
        radius: Tensor | None,
        q: float,
        steepest: int,
        low: Tensor | None,
        high: Tensor | None,
        input_scale: Tensor | None,
    ) -> Tensor:
        out = self._like_samples(x if grad is None else grad)
        self._attack_step(out, x, grad, length, center, radius, q, steepest, low, high, input_scale)
        return out

    def attack_step_(self, x: Tensor, *others: Any) -> None:
        self._attack_step(x, x, *others)

    def _attack_step(
        self,
        out: Tensor,
        x: Tensor,
        grad: Tensor | None,
        length: Tensor | None,
        center: Tensor | None,
        radius: Tensor | None,
        q: float,
        steepest: int,
        low: Tensor | None,
        high: Tensor | None,
        input_scale: Tensor | None,
    ) -> None:
        rows = x if grad is None else grad
        a = kernels().AttackArguments()
        a.batch, a.steepest = rows.shape[0], steepest
        a.length = 0 if length is None else length.data_ptr()
        a.radius = 0 if radius is None else radius.data_ptr()
        a.norm.q = q
        _grad(a.grad, rows, input_scale)
        if grad is None:
            a.grad.data = 0
        a.x, a.x_stride = x.data_ptr(), x.stride(0)
        if center is not None:
            a.center, a.center_stride = center.data_ptr(), center.stride(0)
        for channels, values in ((a.low, low), (a.high, high)):
            if values is not None:
                channels.scale, channels.count = values.data_ptr(), values.numel()
                channels.stride = rows.stride(1) if rows.dim() > 2 else 1
        a.out, a.out_stride = out.data_ptr(), out.stride(0)
        self._launch("attack_step", a)

    def average_margin_loss(
        self,
        logits: Tensor,
        target: Tensor,
        grad: Tensor | None,
        nearest: Tensor | None,
        class_weight: Tensor | None,
        input_scale: Tensor | None,
        q: float,
        eps: float,
        mu: float,
        regularizer: int,
        lo: float,
        hi: float,
        label_smoothing: float,
        ignore_index: int,
        reduction: int,
        need_grad_logits: bool,
        need_grad_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        batch, dtype = logits.shape[0], accumulation_dtype(logits)
        a = kernels().LossArguments()
        self._loss_inputs(a, logits, target, grad, nearest, class_weight, input_scale)
        a.norm.q = q
        a.eps, a.mu, a.regularizer, a.lo, a.hi = eps, mu, regularizer, lo, hi
        a.label_smoothing, a.logits.ignore_index = label_smoothing, ignore_index
        a.reduction = reduction
        loss = self.allocate((batch,) if reduction == 0 else (1,), dtype)
        margin, gap = self.allocate((batch,), dtype), self.allocate((batch,), dtype)
        norm = self.allocate((0 if grad is None else batch,), dtype)
        statistics = self.allocate((len(STATISTIC_NAMES),), dtype)
        a.loss, a.margin, a.gap = loss.data_ptr(), margin.data_ptr(), gap.data_ptr()
        a.norm_out = 0 if grad is None else norm.data_ptr()
        a.statistics = statistics.data_ptr()
        gradients = self._gradients(a, logits, grad, need_grad_logits, need_grad_grad)
        partials = torch.full(
            (kernels().average_margin_loss_partials(batch),), self.poison, dtype=torch.uint8
        )
        self._launch("average_margin_loss", a, partials.data_ptr())
        return (loss if reduction == 0 else loss[0], margin, gap, norm, statistics, *gradients)

    def average_margin_loss_backward(
        self,
        upstream: Tensor,
        logits: Tensor,
        target: Tensor,
        grad: Tensor | None,
        nearest: Tensor | None,
        class_weight: Tensor | None,
        input_scale: Tensor | None,
        q: float,
        eps: float,
        mu: float,
        regularizer: int,
        lo: float,
        hi: float,
        label_smoothing: float,
        ignore_index: int,
        need_grad_logits: bool,
        need_grad_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        a = kernels().LossArguments()
        self._loss_inputs(a, logits, target, grad, nearest, class_weight, input_scale)
        a.norm.q = q
        a.eps, a.mu, a.regularizer, a.lo, a.hi = eps, mu, regularizer, lo, hi
        a.label_smoothing, a.logits.ignore_index = label_smoothing, ignore_index
        a.reduction = 2
        a.upstream, a.upstream_per_sample = upstream.data_ptr(), upstream.numel() != 1
        gradients = self._gradients(a, logits, grad, need_grad_logits, need_grad_grad)
        self._launch("average_margin_loss", a, 0)
        return gradients

    def scale_gradients_(
        self, grad_logits: Tensor, grad_grad: Tensor, upstream: Tensor, statistics: Tensor
    ) -> None:
        a = kernels().ScaleArguments()
        for i, tensor in enumerate((grad_logits, grad_grad)):
            if tensor.numel() > 0:
                block = a.block(i)
                block.data, block.size = tensor.data_ptr(), tensor.numel()
                block.dtype = DTYPES.index(tensor.dtype)
        a.upstream = upstream.data_ptr()
        scale = statistics[STATISTIC_NAMES.index("gradient_scale")]
        a.gradient_scale = scale.data_ptr()
        self._launch("scale", a)

    def _like_samples(self, dense: Tensor) -> Tensor:
        """An output whose samples lie in memory as those of ``dense`` do."""
        out = self.allocate(tuple(dense.shape), dense.dtype)
        return out.as_strided(dense.shape, (out.stride(0), *dense.stride()[1:]))

    @staticmethod
    def _loss_inputs(
        a: Any,
        logits: Tensor,
        target: Tensor,
        grad: Tensor | None,
        nearest: Tensor | None,
        class_weight: Tensor | None,
        input_scale: Tensor | None,
    ) -> None:
        a.batch = logits.shape[0]
        _logits(a.logits, logits, target, nearest, -100)
        a.class_weight = 0 if class_weight is None else class_weight.data_ptr()
        if grad is not None:
            _grad(a.grad, grad, input_scale)

    def _gradients(
        self, a: Any, logits: Tensor, grad: Tensor | None, need_logits: bool, need_grad: bool
    ) -> tuple[Tensor, Tensor]:
        grad_logits = grad_grad = logits.new_empty(0)
        if need_logits:
            grad_logits = self.allocate(tuple(logits.shape), logits.dtype)
            a.grad_logits = grad_logits.data_ptr()
        if need_grad and grad is not None:
            grad_grad = self._like_samples(grad)
            a.grad_grad, a.grad_grad_stride = grad_grad.data_ptr(), grad_grad.stride(0)
        return grad_logits, grad_grad
