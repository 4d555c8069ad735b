"""The loop of plain_loop_before.py with the average margin promoted: compare them with diff."""

from __future__ import annotations

import argparse

import torch
from small_images import small_images
from torch import nn
from torch.utils.data import DataLoader

from margin_ext import AverageMarginLoss


def train(epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(400, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0)
    for epoch in range(epochs):
        for inputs, target in DataLoader(small_images(), batch_size=50, shuffle=True):
            optimizer.zero_grad()
            loss = criterion.run(model, inputs, target).loss
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {float(loss):.3f}, {criterion.statistics}")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    train(parser.parse_args().epochs)
