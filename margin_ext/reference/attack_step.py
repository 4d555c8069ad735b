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

_Ends = tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor]


def attack_step(
    x: Tensor,
    grad: Tensor | None = None,
    length: Tensor | None = None,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    *,
    p: float | str = 2,
    steepest: int = 1,
    data_range: _Ends | None = None,
    input_std: InputStd = None,
) -> Tensor:
    """Move x by length_i along v(grad_i), then into the ball around center and the data range.

    v is the dual direction (see :func:`dual_direction`). For p = 1 (Duchi et al., 2008), 2 and
    infinity a point outside the ball moves to the nearest point of it, for other norms straight
    toward the center. The data range is applied last. The step is computed in float32 (float64 for
    float64) and rounded once. A sample whose gradient holds a NaN becomes NaN.

    Args:
        x: [B, ...].
        grad: [B, ...], the objective's gradient with respect to x; None: no step.
        length: [B], in pixel units where input_std is given.
        center: Center of the ball [B, ...]; None: x.
        radius: Radius of the ball [B], in the same units as length; None: no ball.
        p: The threat norm.
        steepest: For p = 1: how many coordinates share the step in equal parts. They are those with
            the largest gradients, and all that tie with the last of them.
        data_range: Lowest and highest value in the units of x, as numbers or one value a channel.
        input_std: The standard deviation(s) by which the loader divided the inputs.

    Returns:
        The shape and type of x.

    Raises:
        ValueError: steepest does not fit p or x.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> grad = torch.tensor([[3.0, -4.0]])
        >>> attack_step(x, grad, torch.tensor([5.0]), x, torch.tensor([10.0]), p=2)
        tensor([[ 3., -4.]])
    """
    rows = x if grad is None else grad
    check_grad(rows, rows.shape[0] if rows.dim() else 0)
    size = rows[:1].numel()
    if rows.shape[0] and not 1 <= steepest <= size:
        raise ValueError(f"steepest must lie in 1..{size}, got {steepest}")
    q = dual_exponent(p)
    if steepest > 1 and q != math.inf:
        raise ValueError(f"steepest is for p = 1, got p = {p} and steepest = {steepest}")
    if (grad is None) != (length is None):
        raise ValueError("grad and length must be given together")
    dtype = accumulation_dtype(x)
    scale = torch.ones(1, dtype=dtype, device=x.device)
    if input_std is not None:
        scale = channel_scale(input_std, x.to(dtype))
    point = x.to(dtype)
    step = torch.zeros_like(point)  # in pixel units
    if grad is not None and length is not None:
        steep = (grad.to(dtype) * scale).flatten(1)
        v = _shared(steep, steepest) if steepest > 1 else dual_direction(steep, p=p)
        step = (v * length.to(dtype).unsqueeze(1)).reshape(x.shape)
    out = point + step * scale
    if radius is not None:
        base, offset = point, step
        if center is not None:
            base = center.to(dtype)
            offset = (out - base) / scale
        limit = radius.to(dtype).unsqueeze(1)
        out = base + _into_ball(offset.flatten(1), limit, float(p)).reshape(x.shape) * scale
    if data_range is not None:
        low, high = (_over_channels(end, out) for end in data_range)
        out = torch.minimum(torch.maximum(out, low), high)
    if grad is not None:
        broken = grad.flatten(1).isnan().any(dim=1).reshape(-1, *[1] * (x.dim() - 1))
        out = out.masked_fill(broken, math.nan)
    return out.to(x.dtype)


def _over_channels(values: float | Sequence[float] | Tensor, inputs: Tensor) -> Tensor:
    ends = torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device).reshape(-1)
    return ends.reshape(1, -1, *[1] * (inputs.dim() - 2))


def _shared(steep: Tensor, count: int) -> Tensor:
    """The direction [B, D] of the steepest coordinates; subnormal numbers do not count as steep."""
    size = steep.abs()
    tiny = torch.finfo(size.dtype).tiny
    least = size.topk(count, dim=1).values[:, -1:]
    chosen = size >= least.clamp_min(tiny)
    sharing = torch.where(least >= tiny, chosen.sum(dim=1, keepdim=True), count)
    return steep.sign() * chosen / sharing


def _into_ball(delta: Tensor, radius: Tensor, p: float) -> Tensor:
    if p == math.inf:
        return torch.minimum(torch.maximum(delta, -radius), radius)
    if p == 1:
        return _into_l1_ball(delta, radius)
    norm = torch.linalg.vector_norm(delta, p, dim=1, keepdim=True)
    return torch.where(norm > radius, delta * (radius / norm), delta)


def _into_l1_ball(delta: Tensor, radius: Tensor) -> Tensor:
    """Soft thresholding of the rows [B, D], by the threshold that sorting gives (Duchi et al.)."""
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
    thresholds = (ordered.cumsum(dim=1) - radius) / count
    kept = (ordered > thresholds).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, kept - 1).clamp_min(0)
    return delta.sign() * (size - threshold).clamp_min(0)
