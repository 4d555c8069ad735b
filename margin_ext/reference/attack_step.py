"""One step of an attack: along the dual direction, then into the ball and the data range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_grad
from margin_ext.input_std import InputStd, channel_scale
from margin_ext.norms import dual_exponent
from margin_ext.reference.dual import dual_direction

__all__ = ["attack_step"]


def attack_step(
    x: Tensor,
    grad: Tensor,
    length: Tensor,
    center: Tensor,
    radius: Tensor,
    *,
    p: float | str = 2,
    data_range: tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor]
    | None = None,
    input_std: InputStd = None,
) -> Tensor:
    """Move x by length_i along v(grad_i), then into the ball around center and the data range.

    The nearest point of the ball is taken (p = 1: Duchi et al., 2008), and the range comes last.
    Computed in float32 (float64 for float64), and rounded once. A sample whose gradient holds a
    NaN becomes NaN.

    Args:
        x: [B, ...].
        grad: [B, ...], the objective's gradient with respect to x.
        length: [B], in pixel units where input_std is given.
        center: [B, ...].
        radius: [B], of the ball, in the same units as length.
        p: 1, 2 or infinity.
        data_range: Lowest and highest value in the units of x, as numbers or one value a channel.
        input_std: The standard deviation(s) by which the loader divided the inputs.

    Returns:
        The shape and type of x.

    Raises:
        ValueError: There is no attack for this norm.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> grad = torch.tensor([[3.0, -4.0]])
        >>> attack_step(x, grad, torch.tensor([5.0]), x, torch.tensor([10.0]), p=2)
        tensor([[ 3., -4.]])
    """
    check_grad(grad, grad.shape[0] if grad.dim() else 0)
    q = dual_exponent(p)
    if q not in (1.0, 2.0, math.inf):
        raise ValueError(f"attack_step is for p = 1, 2 and inf, got {p}")
    dtype = accumulation_dtype(grad)
    scale = 1.0 if input_std is None else channel_scale(input_std, grad.to(dtype))
    middle = center.to(dtype)
    step = dual_direction(grad.to(dtype), length.to(dtype), p=p, input_std=input_std)
    moved = ((x.to(dtype) - middle + step) / scale).flatten(1)
    limit = radius.to(dtype).unsqueeze(1)
    if q == 1:
        moved = torch.minimum(torch.maximum(moved, -limit), limit)
    elif q == 2:
        norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved = torch.where(norm > limit, moved * (limit / norm), moved)
    else:
        moved = _into_l1_ball(moved, limit)
    out = middle + moved.reshape(grad.shape) * scale
    if data_range is not None:
        low, high = (_over_channels(end, out) for end in data_range)
        out = torch.minimum(torch.maximum(out, low), high)
    broken = grad.flatten(1).isnan().any(dim=1).reshape(-1, *[1] * (grad.dim() - 1))
    return out.masked_fill(broken, math.nan).to(x.dtype)


def _over_channels(values: float | Sequence[float] | Tensor, inputs: Tensor) -> Tensor:
    ends = torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device).reshape(-1)
    return ends.reshape(1, -1, *[1] * (inputs.dim() - 2))


def _into_l1_ball(delta: Tensor, radius: Tensor) -> Tensor:
    """Soft thresholding of the rows [B, D], by the threshold that sorting gives (Duchi et al.)."""
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
    thresholds = (ordered.cumsum(dim=1) - radius) / count
    kept = (ordered > thresholds).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, kept - 1).clamp_min(0)
    return delta.sign() * (size - threshold).clamp_min(0)
