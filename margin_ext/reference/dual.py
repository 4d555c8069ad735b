"""Dual norm and dual direction of input gradients (arXiv 1907.11780, sections 2 and 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_grad, check_same_device, check_sample_vector, shape_text
from margin_ext.input_std import InputStd, channel_scale
from margin_ext.norms import dual_exponent

__all__ = ["dual_direction", "dual_norm"]


# Squares may underflow below the first of these magnitudes and overflow above the second. Then a
# row is multiplied by the third (up) or the fourth (down).
_SQUARES = {
    torch.float32: (2.0**-48, 2.0**48, 2.0**90, 2.0**-80),
    torch.float64: (2.0**-400, 2.0**400, 2.0**800, 2.0**-700),
}


def _to_middle(x: Tensor) -> Tensor:
    """For each row of x [B, D], the power of two that keeps its squares in range."""
    one = x.new_ones(x.shape[0], 1)
    if x.shape[1] == 0:
        return one
    low, high, up, down = _SQUARES[x.dtype]
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    return torch.where(largest < low, one * up, torch.where(largest > high, one * down, one))


class _DualNorm(torch.autograd.Function):
    """||x||_q over dim 1 with v(x) as its gradient: no root in the graph, no NaN at x = 0.

    v is itself differentiable, so the norm is differentiable to any order.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: float) -> Tensor:
        if q == 2:
            factor = _to_middle(x)
            root: Tensor = torch.linalg.vector_norm(x * factor, 2, dim=1) / factor.squeeze(1)
            return root
        if q in (1.0, math.inf):
            plain: Tensor = torch.linalg.vector_norm(x, q, dim=1)
            return plain
        # Scaled by the largest element: |x|^q alone under- or overflows for large q.
        largest = x.abs().amax(dim=1, keepdim=True)
        ratio = torch.where(x.abs() == largest, 1.0, x.abs() / largest)
        norm = largest.squeeze(1) * ratio.pow(q).sum(dim=1).pow(1 / q)
        return torch.where(largest.squeeze(1) == 0, 0.0, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.q = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return upstream.unsqueeze(1) * _direction(x, ctx.q), None


def _norm(x: Tensor, q: float) -> Tensor:
    norm: Tensor = _DualNorm.apply(x, q)  # type: ignore[no-untyped-call]
    return norm


def _direction(x: Tensor, q: float) -> Tensor:
    if q == 1:
        return torch.where(x.isnan().any(dim=1, keepdim=True), math.nan, x.sign())
    if q == math.inf:
        magnitude = x.abs()
        largest = magnitude.amax(dim=1, keepdim=True)
        attained = magnitude == largest
        return x.sign() * attained / attained.sum(dim=1, keepdim=True)
    # A positive multiple has the same direction.
    x = x * _to_middle(x)
    norm = _norm(x, q).unsqueeze(1)
    ratio = torch.where(norm == 0, 0.0, x / torch.where(norm == 0, 1.0, norm))
    if q == 2:
        return ratio
    zero = x == 0  # kept out of pow, whose derivative at 0 is infinite for q < 2
    size = torch.where(zero, 1.0, ratio.abs()).pow(q - 1)
    return torch.where(norm.isnan(), norm, torch.where(zero, 0.0, ratio.sign() * size))


def dual_norm(
    grad: Tensor,
    *,
    p: float | str = 2,
    input_std: InputStd = None,
) -> Tensor:
    """||grad_i||_q of every sample, for the threat norm l_p.

    Args:
        grad: Input gradients [B, ...].
        p: The threat norm, a real number >= 1 or infinity.
        input_std: The loader's standard deviation(s); the norm is then that in pixel units.

    Returns:
        [B], float32 (float64 for float64).

    Example:
        >>> dual_norm(torch.tensor([[3.0, -4.0]]), p="inf")
        tensor([7.])
    """
    check_grad(grad, grad.shape[0] if grad.dim() else 0)
    x = grad.to(accumulation_dtype(grad))
    if input_std is not None:
        x = x * channel_scale(input_std, grad)
    return _norm(x.flatten(1), dual_exponent(p))


def dual_direction(
    grad: Tensor,
    factor: Tensor | None = None,
    *,
    p: float | str = 2,
    base: Tensor | None = None,
    input_std: InputStd = None,
) -> Tensor:
    """Return base + factor_i * v(grad_i), where v rises most steeply per unit of the l_p norm.

    v maximises <v, grad_i> over ||v||_p <= 1; it is 0 where the gradient is 0. Ties under p = 1
    share the step equally.

    Args:
        grad: [B, ...].
        factor: [B]; None: 1.
        p: The threat norm.
        base: The shape and type of grad; None: 0.
        input_std: Standard deviation(s) of the loader's normalisation. v then has unit length in
            pixel units, and the step is returned in the model's units (divided by std).

    Returns:
        The shape and type of grad.

    Example:
        >>> dual_direction(torch.tensor([[3.0, -4.0]]), p=1)
        tensor([[ 0., -1.]])
    """
    check_grad(grad, grad.shape[0] if grad.dim() else 0)
    x = grad.to(accumulation_dtype(grad))
    scale = None if input_std is None else channel_scale(input_std, grad)
    if scale is not None:
        x = x * scale
    v = _direction(x.flatten(1), dual_exponent(p))
    if factor is not None:
        check_same_device("grad", grad, factor=factor)
        check_sample_vector("factor", factor, grad.shape[0])
        v = v * factor.to(v.dtype).unsqueeze(1)
    step = v.reshape(grad.shape)
    if scale is not None:
        step = step * scale
    if base is None:
        return step.to(grad.dtype)
    check_same_device("grad", grad, base=base)
    if base.shape != grad.shape or base.dtype != grad.dtype:
        raise ValueError(
            f"base must have the shape and type of grad, {shape_text(grad)} {grad.dtype}, "
            f"got {shape_text(base)} {base.dtype}"
        )
    return (base.to(step.dtype) + step).to(grad.dtype)
