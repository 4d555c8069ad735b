"""Where a model is defined: moved inputs may leave the domain of a logarithm or a square root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from margin_ext.checks import values_known, values_readable
from margin_ext.loss_options import LossOptions
from margin_ext.threat import DataRange, ThreatModel

__all__ = [
    "has_nan",
    "refuse_nan",
    "refuse_nan_gradients",
    "refuse_nan_inputs",
    "threat_in_range",
]

_FULL: Final = (torch.float32, torch.float64)


def has_nan(logits: Tensor, *, validate: bool) -> bool:
    """Whether any logit is NaN; False where looking would wait for a device, unless validate."""
    return (validate or values_readable(logits)) and bool(logits.detach().isnan().any())


def refuse_nan_inputs(inputs: Tensor, loss: Tensor, *, validate: bool) -> None:
    """Say so where a loss is NaN because an input is; a model may know what to do with NaN.

    Args:
        inputs: [B, ...].
        loss: What the inputs gave, of any shape.
        validate: Look on a GPU too, which waits for it.

    Raises:
        ValueError: Both hold NaN.
    """
    if not (validate or values_known(loss)) or not bool(loss.detach().isnan().any()):
        return
    bad = inputs.detach().isnan().flatten(1).any(1).nonzero()
    if bad.numel():
        raise ValueError(
            f"the loss is NaN because inputs hold NaN, the first at index {int(bad[0])} of the "
            "batch"
        )


def threat_in_range(
    options: LossOptions, data_range: DataRange | None, inputs: Tensor
) -> ThreatModel:
    """The threat model of a loss in a data range in which the inputs [B, ...] lie.

    Whether they do is looked at on the CPU, and elsewhere with ``validate``.

    Raises:
        ValueError: An input lies outside.
    """
    threat = options.threat(data_range)
    if options.validate or values_known(inputs.detach()):
        threat.require_inside(inputs.detach())
    return threat


def refuse_nan(logits: Tensor, mode: str, *, validate: bool) -> None:
    """Require logits of moved inputs without NaN.

    Raises:
        RuntimeError: One is NaN.
    """
    if has_nan(logits, validate=validate):
        raise RuntimeError(
            "the model gives NaN at moved inputs, and not at the inputs themselves: the step has "
            "left the values for which it is defined, such as those above 0 of a logarithm. Give "
            f"them, {mode}(data_range=(lowest, highest)), or make a shorter step"
        )


def refuse_nan_gradients(gradients: Sequence[Tensor | None], upstream: Tensor) -> None:
    """Require gradients of a pass in the backward without NaN, which its loss does not show.

    In 16 bits they may be the overflow that a loss scaler waits for.

    Raises:
        RuntimeError: One has NaN.
    """
    found = [gradient for gradient in gradients if gradient is not None]
    if not values_readable(upstream) or torch.is_autocast_enabled("cpu"):
        return
    if any(gradient.dtype not in _FULL for gradient in found) or not upstream.isfinite().all():
        return
    # A sum is NaN where an element is, or where infinities of both signs are.
    if any(bool(gradient.sum().isnan()) for gradient in found if gradient.layout == torch.strided):
        raise RuntimeError(
            "the model's gradient at moved inputs is NaN: the step has reached the end of the "
            "values for which it can be differentiated, such as 0 for a square root. Give those "
            "values, FiniteDifference(data_range=(lowest, highest)), or make a shorter step"
        )
