"""Exact margins of a linear classifier (arXiv 1907.11780, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext.norms import dual_exponent

__all__ = ["linear_margin"]


def linear_margin(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, target: Tensor, *, p: float | str = 2
) -> Tensor:
    """Signed l_p distance of every input to the decision boundary of z = W x + b.

    min over k != y of (z_y - z_k) / ||W_y - W_k||_q.

    Args:
        weight: W [C, D].
        bias: b [C] or None.
        inputs: [B, ...], flattened to [B, D].
        target: int64 [B].
        p: Threat norm.

    Returns:
        [B]; infinite where two rows of W are equal and the target wins.

    Example:
        >>> linear_margin(torch.eye(2), None, torch.tensor([[3.0, 1.0]]), torch.tensor([0]), p=1)
        tensor([2.])
    """
    x = inputs.flatten(1)
    logits = torch.nn.functional.linear(x, weight, bias)
    gaps = logits.gather(1, target.unsqueeze(1)) - logits  # [B, C]
    norms = torch.linalg.vector_norm(
        weight.unsqueeze(1) - weight.unsqueeze(0), dual_exponent(p), dim=2
    )  # [C, C]
    margins = gaps / norms[target]
    nearest: Tensor = margins.scatter(1, target.unsqueeze(1), torch.inf).amin(dim=1)
    return nearest
