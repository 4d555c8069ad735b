"""Where a perturbed input may be: in an l_p ball around the input, and in the data's box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from margin_ext.checks import shape_text
from margin_ext.reference.dual import channel_scale

__all__ = ["DataRange", "box", "perturbation_norm", "project"]

DataRange = tuple[float | Tensor, float | Tensor]


def box(data_range: DataRange, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The data's box as two tensors that broadcast over inputs [B, Ch, ...].

    Args:
        data_range: Lowest and highest value, numbers or one value a channel, in the units of the
            inputs that the model gets.
        inputs: [B, ...].
    """
    ends = []
    for end in data_range:
        bound = torch.as_tensor(end, dtype=inputs.dtype, device=inputs.device)
        if bound.dim() == 1 and bound.numel() > 1:
            if inputs.dim() < 2 or bound.shape[0] != inputs.shape[1]:
                raise ValueError(
                    f"data_range must have numbers or one value a channel, got "
                    f"{shape_text(bound)} for inputs {shape_text(inputs)}"
                )
            bound = bound.reshape(1, -1, *[1] * (inputs.dim() - 2))
        ends.append(bound)
    return ends[0], ends[1]


def project(
    x: Tensor,
    center: Tensor,
    eps: Tensor,
    *,
    p: float,
    bounds: tuple[Tensor, Tensor] | None,
    input_std: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Into the l_p ball of radius eps [B] around center, and into the data's box.

    Outside p = 2 and p = inf the way into the ball is straight toward the center, which is not the
    shortest. First the ball and then the box: both hold afterwards, since the box contains the
    center and clipping moves every coordinate toward it.
    """
    scale = 1.0 if input_std is None else 1 / channel_scale(input_std, x)
    delta = (x - center) * scale
    radius = eps.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    if p == math.inf:
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        norm = torch.linalg.vector_norm(delta.flatten(1), p, dim=1).reshape(radius.shape)
        delta = delta * (radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    moved = center + delta / scale
    return moved if bounds is None else torch.minimum(torch.maximum(moved, bounds[0]), bounds[1])


def perturbation_norm(
    delta: Tensor, *, p: float, input_std: float | Sequence[float] | Tensor | None = None
) -> Tensor:
    """||delta||_p of every sample [B], in pixel units where input_std is given."""
    if input_std is not None:
        delta = delta / channel_scale(input_std, delta)
    norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), p, dim=1)
    return norm
