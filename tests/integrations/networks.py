"""A small problem that every integration is tried on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def small_data(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 4, 4] in [0, 1] and labels of 3 classes."""
    inputs = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs.flatten(1)[:, :3].argmax(dim=1)


def small_network() -> nn.Sequential:
    """A network that has learnt the small data, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 3))
        inputs, target = small_data(200, seed=5)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), target).backward()
            optimizer.step()
    return net.eval()
