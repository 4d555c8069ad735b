"""Shapes, types and strides of the ops' outputs, for torch.compile and torch.export.

Each fake kernel must return what its op allocates in csrc/torch/ops.h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_class_grad, check_grad, check_logits
from margin_ext.statistics import STATISTIC_NAMES

__all__ = ["register_fake_kernels"]


def _empty_like_samples(grad: Tensor) -> Tensor:
    """Uninitialised, with grad's memory order within a sample where that is dense."""
    if not _samples_dense(grad):
        return torch.empty_like(grad, memory_format=torch.contiguous_format)
    size = 1
    for extent in grad.shape[1:]:
        size = size * extent
    return torch.empty_strided(
        grad.shape, (size, *grad.stride()[1:]), dtype=grad.dtype, device=grad.device
    )


def _samples_dense(grad: Tensor) -> bool:
    """Whether each sample fills one block of memory; csrc/torch/layout.h does the same."""
    if any(extent == 0 for extent in grad.shape[1:]):
        return True
    strides = zip(grad.stride()[1:], grad.shape[1:], strict=True)
    dims = sorted((stride, extent) for stride, extent in strides if extent > 1)
    expected = 1
    for stride, extent in dims:
        if stride != expected:
            return False
        expected = expected * extent
    return True


def _logit_gap(
    logits: Tensor, target: Tensor, nearest: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    check_logits(logits, target)
    gap = logits.new_empty(logits.shape[0], dtype=accumulation_dtype(logits))
    return gap, target.new_empty(logits.shape[0])


def _first_order_margin(
    gap: Tensor, grad: Tensor, q: float, eps: float, input_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_grad(grad, grad.shape[0])
    return gap.new_empty(grad.shape[0]), gap.new_empty(grad.shape[0])


def _class_margins(
    gap: Tensor, grad: Tensor, q: list[float], input_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    check_class_grad(grad)
    shape = (len(q), *grad.shape[:2])
    nearest = gap.new_empty(shape[:2], dtype=torch.int64)
    return gap.new_empty(shape), gap.new_empty(shape), nearest


def _dual_direction(
    grad: Tensor, factor: Tensor, base: Tensor | None, q: float, input_scale: Tensor | None
) -> Tensor:
    check_grad(grad, grad.shape[0])
    return _empty_like_samples(grad)


def _attack_step(
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
    rows = x if grad is None else grad
    check_grad(rows, rows.shape[0])
    return _empty_like_samples(rows)


def _attack_step_(x: Tensor, *others: object) -> None:
    return None


def _gradients(
    logits: Tensor, grad: Tensor | None, need_grad_logits: bool, need_grad_grad: bool
) -> tuple[Tensor, Tensor]:
    grad_logits = logits.new_empty(logits.shape if need_grad_logits else (0,))
    if need_grad_grad and grad is not None:
        return grad_logits, _empty_like_samples(grad)
    return grad_logits, logits.new_empty(0)


def _average_margin_loss(
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
) -> tuple[Tensor, ...]:
    check_logits(logits, target)
    if grad is not None:
        check_grad(grad, logits.shape[0])
    batch = logits.shape[0]

    def vector(*shape: int) -> Tensor:
        return logits.new_empty(shape, dtype=accumulation_dtype(logits))

    return (
        vector(batch) if reduction == 0 else vector(),
        vector(batch),
        vector(batch),
        vector(0 if grad is None else batch),
        vector(len(STATISTIC_NAMES)),
        *_gradients(logits, grad, need_grad_logits, need_grad_grad),
    )


def _average_margin_loss_backward(
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
    return _gradients(logits, grad, need_grad_logits, need_grad_grad)


def _scale_gradients_(
    grad_logits: Tensor, grad_grad: Tensor, upstream: Tensor, statistics: Tensor
) -> None:
    return None


def register_fake_kernels() -> None:
    """Register all of them; once, after the library that defines the ops is loaded."""
    kernels: dict[str, Callable[..., object]] = {
        "logit_gap": _logit_gap,
        "first_order_margin": _first_order_margin,
        "class_margins": _class_margins,
        "dual_direction": _dual_direction,
        "attack_step": _attack_step,
        "attack_step_": _attack_step_,
        "average_margin_loss": _average_margin_loss,
        "average_margin_loss_backward": _average_margin_loss_backward,
        "scale_gradients_": _scale_gradients_,
    }
    for name, kernel in kernels.items():
        torch.library.register_fake(f"margin_ext::{name}", kernel)
