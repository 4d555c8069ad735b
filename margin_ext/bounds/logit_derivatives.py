"""Derivatives of all logits along many directions, without a backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["DIFFERENCE_STEPS", "LogitDerivatives", "by_differences", "forward_mode"]

# Steps of finite differences, relative to the root mean square of a sample.
DIFFERENCE_STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}
# Products are off by their rounding, which is relative to the largest logit's derivative: it is
# what the others are subtracted from.
_ROUNDINGS = 64


class LogitDerivatives(NamedTuple):
    """Derivatives of the logits along c directions.

    Attributes:
        values: [c, B, C].
        error: How far differences of two of them may be off [c, B].
    """

    values: Tensor
    error: Tensor


def forward_mode(model: Model, inputs: Tensor, directions: Tensor) -> LogitDerivatives:
    """By forward-mode differentiation: all directions together, or one by one where vmap fails.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        directions: [c, ...], the same for every sample.

    Raises:
        Exception: Whatever a layer without forward mode raises.
    """

    def along(direction: Tensor) -> Tensor:
        moved = direction.expand_as(inputs)
        derivative: Tensor = torch.func.jvp(model, (inputs,), (moved,))[1]
        return derivative

    with torch.no_grad(), _plain_attention(), warnings.catch_warnings():
        # Torch's own first use of its forward mode.
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", DeprecationWarning)
        try:
            with warnings.catch_warnings():
                # An operation that vmap runs in a loop saves nothing.
                warnings.filterwarnings("error", ".*performance drop because we have not yet.*")
                values = torch.func.vmap(along, randomness="same")(directions)
        # Whatever a layer raises that cannot be batched.
        except Exception:
            values = torch.stack([along(one) for one in directions])
    return LogitDerivatives(values, _rounding(values))


def by_differences(
    model: Model, inputs: Tensor, logits: Tensor, directions: Tensor, *, both: bool
) -> LogitDerivatives:
    """By differences of forward passes at inputs + h r.

    Args:
        model: In eval mode.
        inputs: [B, ...] in float32 or float64.
        logits: At the inputs [B, C].
        directions: [c, ...], the same for every sample; each entry of the size of 1.
        both: Step backward as well. The two differ by the error of the differences: curvature,
            kinks and rounding. Otherwise the error is 0.
    """
    size = inputs.flatten(1).square().mean(dim=1).sqrt()
    step = DIFFERENCE_STEPS[inputs.dtype] * torch.where(size > 0, size, 1.0)

    def difference(sign: float) -> Tensor:
        h = sign * step.reshape(-1, *[1] * (inputs.dim() - 1))
        points = inputs + h * directions.unsqueeze(1)
        moved = model(points.flatten(0, 1)).reshape(directions.shape[0], *logits.shape)
        return (moved - logits) / (sign * step).unsqueeze(1)

    with torch.no_grad():
        values = difference(1.0)
        error = values.new_zeros(values.shape[:2])
        if both:
            spread = (values - difference(-1.0)).abs() / 2
            error = 2 * spread.amax(dim=2)
    return LogitDerivatives(values, error + _rounding(values))


def _rounding(values: Tensor) -> Tensor:
    return _ROUNDINGS * torch.finfo(values.dtype).eps * values.abs().amax(dim=2)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Compute attention by operations that have a forward mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
