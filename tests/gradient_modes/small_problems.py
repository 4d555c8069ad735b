"""Networks small enough for exact answers, samples of theirs, and what their passes saw."""

from __future__ import annotations

import copy

import torch
from torch import nn

from margin_ext import AverageMarginLoss


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = 0.5 * torch.randn(20, 6, dtype=torch.float64)
    return nn.Linear(6, 2).double(), x.clamp(-1.5, 1.5), torch.randint(2, (20,))


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data(model: nn.Module, batch: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Two in three are classified correctly."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::3] = torch.randint(4, (len(y[::3]),), generator=generator)
    return x, y


def gradients(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def require_the_same_compiled(criterion: AverageMarginLoss) -> None:
    """A compiled model has the loss and the gradients of the model itself."""
    net = smooth_net()
    x, y = data(net)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager")
    wanted, found = criterion.run(net, x, y), criterion.run(compiled, x, y)
    torch.testing.assert_close(found.loss, wanted.loss)
    wanted.loss.backward()
    found.loss.backward()
    for a, b in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


class Recorded(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)
