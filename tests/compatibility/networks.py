"""Small networks with a feature each, and what to compare."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from margin_ext import Auto, AverageMarginLoss, FiniteDifference

CLASSES = 4
SHORT = FiniteDifference("central", 0.02, "absolute")
FIRST_ORDER_MODES = ("double_backward", "finite_difference", "detached")


def criterion(mode: str, **settings) -> AverageMarginLoss:
    short = {"finite_difference": SHORT, "auto": Auto(SHORT)}
    return AverageMarginLoss(gradient=short.get(mode, mode), regularizer="softplus", **settings)


def step(loss: AverageMarginLoss, model: nn.Module, x: Tensor, y: Tensor, **settings):
    """The loss and the parameter gradient of one step, after which the model is as before."""
    model.zero_grad()
    torch.manual_seed(1)
    out = loss.run(model, x, y, **settings)
    out.loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return out.loss.detach(), torch.cat(grads).clone()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def vectors(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 10), torch.arange(batch) % CLASSES


def sequences(batch: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 5, 8), torch.arange(batch) % CLASSES


def images(batch: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.arange(batch) % CLASSES


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cells = kind(8, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Attention(nn.Module):
    """Self-attention by F.scaled_dot_product_attention, one head."""

    def __init__(self, backend=None) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.head = nn.Linear(8, CLASSES)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)
        chosen = contextlib.nullcontext()
        if self.backend is not None:
            chosen = torch.nn.attention.sdpa_kernel(self.backend)
        with chosen:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.squeeze(1).mean(1))


class MultiheadAttention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(mixed.mean(1))


def conv(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norm or nn.Identity(),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )
