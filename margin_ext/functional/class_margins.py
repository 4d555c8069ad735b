"""First-order margins to several classes a sample in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_same_device
from margin_ext.functional.dispatch import compiled_for, fallback, match_accumulation
from margin_ext.input_std import InputStd, channel_scale
from margin_ext.norms import op_exponent
from margin_ext.op_results import ClassMargins

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["class_margins"]

# Norms of one launch: ClassMarginArguments::kMaxNorms.
_MOST = 8


def class_margins(
    gap: Tensor,
    grad: Tensor,
    *,
    p: Sequence[float | str] = (2,),
    input_std: InputStd = None,
) -> ClassMargins:
    """Margins gap / ||grad||_q to K classes of every sample, and the nearest class.

    A gap of 0 has margin 0. Any other gap whose gradient is 0 has an infinite margin with the sign
    of the gap. If several classes have the smallest margin, the first is the nearest; NaN counts as
    the smallest.

    The compiled op reads grad once for all norms, and takes any strides in the first two
    dimensions. It is not differentiable: where a gradient is needed, the reference is used.

    Args:
        gap: Logit gaps to the classes [B, K].
        grad: Input gradients of these gaps [B, K, ...].
        p: Threat norms.
        input_std: Standard deviation(s) of the loader's normalisation: margins in pixel units.

    Raises:
        ValueError, TypeError: Shapes or types do not fit.

    Example:
        >>> gap, grad = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        >>> found = class_margins(gap, grad, p=[2, "inf"])
        >>> found.margin[:, 0], found.nearest[:, 0]
        (tensor([[2.0000, 0.6000],
                [2.0000, 0.4286]]), tensor([1, 1]))
    """
    differentiated = torch.is_grad_enabled() and (gap.requires_grad or grad.requires_grad)
    if differentiated or not compiled_for(grad) or grad.dim() < 3:
        return fallback.class_margins(gap, grad, p=p, input_std=input_std)
    check_same_device("grad", grad, gap=gap)
    gap, grad = match_accumulation(gap, grad)
    scale = None
    if input_std is not None:
        # The channels come after the classes.
        scale = channel_scale(input_std, grad.movedim(1, -1)).reshape(-1)
    exponents = [op_exponent(one) for one in p]
    gap = gap.to(accumulation_dtype(grad))
    found = [
        torch.ops.margin_ext.class_margins(gap, grad, exponents[first : first + _MOST], scale)
        for first in range(0, max(len(exponents), 1), _MOST)
    ]
    if len(found) > 1:
        return ClassMargins(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return ClassMargins(*found[0])
