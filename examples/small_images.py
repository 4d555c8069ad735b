"""Ten classes of small images, drawn around fixed patterns: data for the examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 10


def small_images(count: int = 1000, seed: int = 0) -> TensorDataset:
    """Images [count, 3, 12, 12] in [0, 1] and their classes."""
    patterns = torch.rand(CLASSES, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES, (count,), generator=generator)
    noise: Tensor = 0.5 * torch.randn(count, 3, 12, 12, generator=generator)
    return TensorDataset((patterns[target] + noise).clamp(0, 1), target)
