"""First-order margins to several classes a sample (arXiv 1907.11780, sections 2 and 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.checks import check_class_grad, check_same_device, shape_text
from margin_ext.op_results import ClassMargins
from margin_ext.reference.dual import dual_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin_ext.input_std import InputStd

__all__ = ["class_margins"]


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

    Args:
        gap: Logit gaps to the classes [B, K].
        grad: Input gradients of these gaps [B, K, ...].
        p: Threat norms.
        input_std: Standard deviation(s) of the loader's normalisation: margins in pixel units.

    Example:
        >>> gap, grad = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        >>> class_margins(gap, grad, p=[2]).margin
        tensor([[[2.0000, 0.6000]]])
    """
    check_class_grad(grad)
    check_same_device("grad", grad, gap=gap)
    if gap.shape != grad.shape[:2]:
        raise ValueError(f"gap must be {list(grad.shape[:2])}, got {shape_text(gap)}")
    if not p:
        raise ValueError("p must name at least one norm")
    rows = grad.flatten(0, 1)
    norms = [dual_norm(rows, p=one, input_std=input_std).reshape(gap.shape) for one in p]
    norm = torch.stack(norms)
    norm = norm.to(torch.promote_types(norm.dtype, gap.dtype))
    gaps = gap.to(norm.dtype).expand_as(norm)
    some = torch.where(norm == 0, 1.0, norm)
    margin = torch.where(norm == 0, gaps.sign() * math.inf, gaps / some)
    margin = torch.where(gaps == 0, 0.0, margin)
    if not gap.shape[1]:
        return ClassMargins(margin, norm, margin.new_full(margin.shape[:2], -1, dtype=torch.int64))
    smallest = margin.detach().amin(dim=2, keepdim=True)
    attained = (margin == smallest) | (margin.isnan() & smallest.isnan())
    return ClassMargins(margin, norm, attained.int().argmax(dim=2))
