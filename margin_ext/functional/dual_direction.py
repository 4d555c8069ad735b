"""Steps along the dual direction, for finite differences and attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_same_device
from margin_ext.functional.dispatch import compiled_for, fallback, flat_channel_scale
from margin_ext.input_std import InputStd
from margin_ext.norms import op_exponent

__all__ = ["dual_direction"]


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
    share the step equally. The compiled op is not differentiable: where a gradient is needed, the
    reference is used.

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
        >>> dual_direction(torch.tensor([[3.0, -4.0]]), torch.tensor([2.0]), p="inf")
        tensor([[ 2., -2.]])
    """
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (grad, factor, base)
    )
    if differentiated or not compiled_for(grad):
        return fallback.dual_direction(grad, factor, p=p, base=base, input_std=input_std)
    check_same_device("grad", grad, factor=factor, base=base)
    dtype = accumulation_dtype(grad)
    factor = grad.new_ones(grad.shape[:1], dtype=dtype) if factor is None else factor.to(dtype)
    scale = flat_channel_scale(input_std, grad)
    step: Tensor = torch.ops.margin_ext.dual_direction(grad, factor, base, op_exponent(p), scale)
    return step
