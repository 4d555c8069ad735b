"""Steps along the dual direction, for finite differences and attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext import reference
from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_same_device
from margin_ext.functional.dispatch import compiled_for, flat_channel_scale
from margin_ext.input_std import InputStd
from margin_ext.norms import dual_exponent

__all__ = ["dual_direction"]


def dual_direction(
    grad: Tensor,
    factor: Tensor | None = None,
    *,
    p: float | str = 2,
    base: Tensor | None = None,
    input_std: InputStd = None,
) -> Tensor:
    """As :func:`margin_ext.reference.dual_direction`.

    The compiled op has no gradient of its own: where one is asked for, the reference serves.
    """
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (grad, factor, base)
    )
    if differentiated or not compiled_for(grad):
        return reference.dual_direction(grad, factor, p=p, base=base, input_std=input_std)
    check_same_device("grad", grad, factor=factor, base=base)
    dtype = accumulation_dtype(grad)
    factor = grad.new_ones(grad.shape[:1], dtype=dtype) if factor is None else factor.to(dtype)
    scale = flat_channel_scale(input_std, grad)
    step: Tensor = torch.ops.margin_ext.dual_direction(grad, factor, base, dual_exponent(p), scale)
    return step
