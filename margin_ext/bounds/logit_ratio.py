"""A gap over the scale of the logits, which a search cannot lower by shrinking all logits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["logit_ratio"]


def logit_ratio(gap: Tensor, logits: Tensor) -> Tensor:
    """The gap [B] over the largest logit minus the mean of the third and fourth largest.

    This is the targeted difference of logits ratio of Croce and Hein (arXiv 2003.01690, equation
    (6)). With three classes the third logit stands alone; with two, and where the largest logits
    are equal, the gap itself is returned.

    Args:
        gap: [B], of these logits.
        logits: [B, C].

    Example:
        >>> logits = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
        >>> logit_ratio(logits[:, 0] - logits[:, 1], logits)
        tensor([0.3333])
    """
    if logits.shape[1] < 3:
        return gap
    largest = logits.to(gap.dtype).topk(min(4, logits.shape[1]), dim=1).values
    scale = largest[:, 0] - largest[:, 2:].mean(dim=1)
    return gap / torch.where(scale > 0, scale, 1.0)
