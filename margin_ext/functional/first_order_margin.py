"""First-order margin with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_eps, check_same_device
from margin_ext.functional.dispatch import (
    compiled_for,
    fallback,
    flat_channel_scale,
    match_accumulation,
)
from margin_ext.input_std import InputStd
from margin_ext.norms import op_exponent
from margin_ext.op_results import FirstOrderMargin

__all__ = ["first_order_margin"]


class _FirstOrderMargin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gap: Tensor, grad: Tensor, p: float | str, eps: float, input_std: InputStd
    ) -> tuple[Tensor, Tensor]:
        scale = flat_channel_scale(input_std, grad)
        margin, norm = torch.ops.margin_ext.first_order_margin(
            gap, grad, op_exponent(p), eps, scale
        )
        ctx.save_for_backward(gap, grad, norm)
        ctx.p, ctx.eps, ctx.input_std = p, eps, input_std
        ctx.set_materialize_grads(False)
        return margin, norm

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, upstream_norm: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        gap, grad, norm = ctx.saved_tensors
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if twice:  # create_graph: the same formula, made of differentiable pieces
            norm = fallback.dual_norm(grad, p=ctx.p, input_std=ctx.input_std)
        clamped = norm <= ctx.eps
        n = torch.where(clamped, ctx.eps, norm)
        factor = torch.zeros_like(norm) if upstream_norm is None else upstream_norm
        grad_gap = None
        if upstream is not None:
            missing = gap.isnan()
            upstream, gap = torch.where(missing, 0.0, upstream), torch.where(missing, 0.0, gap)
            grad_gap = upstream / n
            constant = clamped | (gap.isinf() & ~norm.isnan())
            factor = factor + torch.where(constant, 0.0, -upstream * gap / n / n)
        if not ctx.needs_input_grad[1]:
            return grad_gap, None, None, None, None
        if twice:
            direction = fallback.dual_direction(grad, factor, p=ctx.p, input_std=ctx.input_std)
        else:
            scale = flat_channel_scale(ctx.input_std, grad)
            direction = torch.ops.margin_ext.dual_direction(
                grad, factor, None, op_exponent(ctx.p), scale
            )
        return grad_gap, direction, None, None, None


def first_order_margin(
    gap: Tensor,
    grad: Tensor,
    *,
    p: float | str = 2,
    eps: float = 1e-6,
    input_std: InputStd = None,
) -> FirstOrderMargin:
    """Distance to the decision boundary of the classifier linearised at each input.

    Exact for a linear classifier. Differentiable in gap and grad to any order; a norm of at most
    eps counts as the constant eps. A NaN gap (an ignored sample) gives a NaN margin without
    gradients.

    Args:
        gap: Logit gaps [B].
        grad: Input gradients of the gaps [B, ...].
        p: Threat norm; the gradient is measured in its dual norm.
        eps: Floor of the norm.
        input_std: Standard deviation(s) of the loader's normalisation: margins in pixel units.

    Raises:
        ValueError, TypeError: Shapes or types do not fit.

    Example:
        >>> first_order_margin(torch.tensor([10.0]), torch.tensor([[3.0, 4.0]])).margin
        tensor([2.])
    """
    if not compiled_for(grad):
        return fallback.first_order_margin(gap, grad, p=p, eps=eps, input_std=input_std)
    check_same_device("grad", grad, gap=gap)
    check_eps(eps, accumulation_dtype(gap, grad))
    gap, grad = match_accumulation(gap, grad)
    gap = gap.to(accumulation_dtype(grad))
    found = _FirstOrderMargin.apply(  # type: ignore[no-untyped-call]
        gap, grad, p, eps, input_std
    )
    return FirstOrderMargin(*found)
