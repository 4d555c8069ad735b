"""The first-order margin (arXiv 1907.11780, sections 2 and 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext.checks import check_eps, check_grad, check_same_device, check_sample_vector
from margin_ext.input_std import InputStd
from margin_ext.op_results import FirstOrderMargin
from margin_ext.reference.dual import dual_norm

__all__ = ["first_order_margin"]


def first_order_margin(
    gap: Tensor,
    grad: Tensor,
    *,
    p: float | str = 2,
    eps: float = 1e-6,
    input_std: InputStd = None,
) -> FirstOrderMargin:
    """Distance to the decision boundary of the classifier linearised at each input.

    Exact for a linear classifier. Differentiable in gap and grad to any order; where the norm is
    at most eps it counts as the constant eps. A NaN gap (an ignored sample) gives a NaN margin
    without gradients.

    Args:
        gap: Logit gaps [B].
        grad: Input gradients of the gaps [B, ...].
        p: Threat norm; the gradient is measured in its dual norm.
        eps: Floor of the norm.
        input_std: Standard deviation(s) of the loader's normalisation: margins in pixel units.

    Example:
        >>> first_order_margin(torch.tensor([10.0]), torch.tensor([[3.0, 4.0]])).margin
        tensor([2.])
    """
    check_grad(grad, grad.shape[0] if grad.dim() else 0)
    check_same_device("grad", grad, gap=gap)
    check_sample_vector("gap", gap, grad.shape[0])
    norm = dual_norm(grad, p=p, input_std=input_std)
    norm = norm.to(torch.promote_types(norm.dtype, gap.dtype))
    check_eps(eps, norm.dtype)
    floored = torch.where(norm <= eps, eps, norm)
    # Where every other class is masked with -inf, the gap is infinite, and no norm changes that.
    floored = torch.where(gap.isinf() & ~norm.isnan(), floored.detach(), floored)
    missing = gap.isnan()
    margin = torch.where(missing, 0.0, gap.to(norm.dtype)) / floored
    return FirstOrderMargin(torch.where(missing, math.nan, margin), norm)
