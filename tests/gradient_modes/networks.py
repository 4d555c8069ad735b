"""Tiny networks in float64, and the gradient that a criterion gives them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss

CLASSES = 5


def smooth_cnn(*, batchnorm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    def norm() -> nn.Module:
        return nn.BatchNorm2d(6) if batchnorm else nn.Identity()

    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norm(),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 6, 3, stride=2),
        norm(),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    ).double()


def smooth_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.Softplus(), nn.Linear(16, CLASSES)
    ).double()


def images(batch: int = 6, side: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, side, side, dtype=torch.float64), torch.randint(
        0, CLASSES, (batch,)
    )


def gradient(model: nn.Module, criterion: AverageMarginLoss, *args, seed: int = 0, **kwargs):
    """The loss and its parameter gradient on a copy of the model, which is returned too."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    out = criterion.run(model, *args, **kwargs)
    out.loss.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return out, torch.cat([g.flatten() for g in grads]), model
