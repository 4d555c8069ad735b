"""A network with BatchNorm in training mode, whose margins are known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.reference import linear_margin

DIMS, CLASSES, COUNT = 5, 3, 40
# Torch's own, when its compiler is imported.
COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def normalised_linear() -> nn.Sequential:
    """BatchNorm and a linear layer in training mode, with running statistics of their own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(DIMS), nn.Linear(DIMS, CLASSES)).double()
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        norm.running_mean.copy_(torch.arange(float(DIMS)))  # type: ignore[union-attr]
        norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    return net.train()


def labelled(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(COUNT, DIMS, generator=torch.Generator().manual_seed(1)).double() * 2
    with evaluation_mode(net), torch.no_grad():
        return x, net(x).argmax(dim=1)


def exact_margins(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    norm, linear = net
    weight = linear.weight / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator]
    bias = linear.bias - weight @ norm.running_mean  # type: ignore[operator]
    return linear_margin(weight.detach(), bias.detach(), x, y, p=2)  # type: ignore[arg-type]
