"""The type in which sums over a sample are accumulated."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulation_dtype"]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any of the tensors has it, otherwise float32.

    Example:
        >>> accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32
