"""One value a sample, in a shape that broadcasts over the samples."""

from __future__ import annotations

from torch import Tensor

__all__ = ["per_sample"]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] as [B, 1, ...], with as many dimensions as ``like`` [B, ...].

    >>> import torch
    >>> per_sample(torch.ones(2), torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 1, 1, 1])
    """
    return values.reshape(-1, *[1] * (like.dim() - 1))
