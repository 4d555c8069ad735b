"""An ordinary training loop. plain_loop_after.py is the same with the average margin promoted."""

from __future__ import annotations

import argparse

import torch
from small_images import small_images
from torch import nn
from torch.utils.data import DataLoader


def train(epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(400, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        for inputs, target in DataLoader(small_images(), batch_size=50, shuffle=True):
            optimizer.zero_grad()
            logits = model(inputs)
            loss = criterion(logits, target)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {float(loss):.3f}")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    train(parser.parse_args().epochs)
