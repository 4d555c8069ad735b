"""The log-odds of the label: a smooth logit gap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_logits_and_labels, check_target, values_readable

__all__ = ["check_one_label", "log_odds"]


def check_one_label(logits: Tensor, target: Tensor) -> None:
    """Require logits [B, C] and target [B].

    Raises:
        ValueError: They are dense, or the target holds probabilities.
    """
    check_logits_and_labels(logits, target)
    if logits.dim() != 2 or target.dim() != 1:
        raise ValueError(
            "the log-odds take logits [B, C] and one class label a sample [B], got a target of "
            f"{target.dim()} dimensions and {target.dtype}"
        )


def log_odds(
    logits: Tensor, target: Tensor, *, ignore_index: int = -100, validate: bool = False
) -> Tensor:
    """The label's logit minus the log-sum-exp of all others, z_y - log sum_{k != y} exp(z_k).

    It is the logarithm of p_y / (1 - p_y) under the softmax, and lies below the logit gap by at
    most log(C - 1). The cross-entropy is softplus(-log_odds). Differentiable to any order; where
    all other classes are masked with -inf it is inf, without a gradient.

    Args:
        logits: [B, C], C >= 2.
        target: int64 [B].
        ignore_index: Samples with this label get NaN.
        validate: Check labels on CUDA too, and synchronise; on CPU they always are.

    Returns:
        [B], float32 (float64 for float64).

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or a label is out of range.

    Example:
        >>> log_odds(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor([2.])
    """
    check_one_label(logits, target)
    if validate or values_readable(target):
        check_target(target, logits.shape[1], ignore_index)
    z = logits.to(accumulation_dtype(logits))
    counted = target != ignore_index
    label = torch.where(counted, target, 0).unsqueeze(1)
    others = z.scatter(1, label, -math.inf)
    masked = (others == -math.inf).all(1)
    # The gradient of the log-sum-exp of nothing but -inf would be 0 / 0.
    rest = torch.where(masked.unsqueeze(1), 0.0, others).logsumexp(1)
    odds = torch.where(masked, math.inf, z.gather(1, label).squeeze(1) - rest)
    return torch.where(counted, odds, math.nan)
