"""Sixteen pixels, three classes: small enough to compare trainings in seconds."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.robust_training.problems import Problem
from margin_ext.training import Recipe

SIDE, CLASSES = 4, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.GELU(), nn.Linear(8, CLASSES))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    x[torch.arange(count), 0, labels] += 0.6
    return x, labels


TINY = Problem(
    "tiny", "tiny", "tiny", network, Recipe(2, 20, 0.1), None, 0.4, allowed_loss=0.002, targets=2
)
