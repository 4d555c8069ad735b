"""The standard deviation by which a loader divides, and what it does to gradients.

Where the loader normalises, x_pixel = x * std + mean, so a gradient in pixel units is the gradient
with respect to the model's input divided by std.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import shape_text

__all__ = ["InputStd", "channel_scale", "checked_std"]

# A number, one value a channel, or None where the loader does not normalise.
InputStd: TypeAlias = float | Sequence[float] | Tensor | None
_FEW = 16  # numbers


def channel_scale(input_std: float | Sequence[float] | Tensor, grad: Tensor) -> Tensor:
    """1 / std, in a shape that multiplies grad [B, Ch, ...].

    Example:
        >>> channel_scale([0.5, 0.25], torch.ones(1, 2, 8, 8)).flatten()
        tensor([2., 4.])
    """
    std = _on_device(input_std, accumulation_dtype(grad), grad.device)
    if std.dim() == 0 or std.numel() == 1:
        return 1 / std.reshape(1)
    if std.dim() != 1 or std.shape[0] != grad.shape[1]:
        raise ValueError(
            f"input_std must be a number or have one value a channel, [{grad.shape[1]}] for inputs "
            f"{shape_text(grad)}, got {shape_text(std)}"
        )
    return (1 / std).reshape(1, -1, *[1] * (grad.dim() - 2))


def _on_device(
    input_std: float | Sequence[float] | Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of the values.

    A copy of numbers from the host to a GPU waits for all that is in flight there, and cannot be
    captured in a graph. So a few numbers are filled in by kernels.
    """
    given = [input_std] if isinstance(input_std, Real) else input_std
    if device.type != "cpu" and isinstance(given, Sequence) and 0 < len(given) <= _FEW:
        largest = torch.finfo(dtype).max  # beyond it infinite, as in a copy
        numbers = [float(x) for x in given if isinstance(x, Real)]
        fillings = [math.inf if x > largest else x for x in numbers]
        if len(fillings) == len(given):
            return torch.stack([torch.full((), x, dtype=dtype, device=device) for x in fillings])
    return torch.as_tensor(input_std, dtype=dtype, device=device)


def checked_std(input_std: InputStd) -> Tensor | None:
    """Standard deviation(s) in float64, a number or [channels].

    Raises:
        ValueError: A value is zero, negative, infinite or NaN, or there are further dimensions.

    Example:
        >>> checked_std([0.5, 0.25])
        tensor([0.5000, 0.2500], dtype=torch.float64)
        >>> checked_std(0.0)
        Traceback (most recent call last):
            ...
        ValueError: input_std must be a number or [channels], above 0 and finite, got 0.0
    """
    if input_std is None:
        return None
    std = torch.as_tensor(input_std, dtype=torch.float64, device="cpu")
    if std.dim() > 1 or not std.numel() or not bool(((std > 0) & std.isfinite()).all()):
        raise ValueError(
            "input_std must be a number or [channels], above 0 and finite, "
            f"got {input_std.tolist() if isinstance(input_std, Tensor) else input_std!r}"
        )
    return std
