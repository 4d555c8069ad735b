"""Inputs normalised by the loader, as timm and torchvision do it: margins in pixel units.

The model sees (x - mean) / std. A distance there is not one in pixels, and not even the same in
every channel; with input_std, p, tau and all reported margins are those of x in [0, 1].
"""

from __future__ import annotations

import argparse

import torch
from small_images import small_images
from torch import nn
from torch.utils.data import DataLoader

from margin_ext import AverageMarginLoss

# With timm: timm.data.resolve_model_data_config(model)["mean"] and ["std"].
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # p="inf" and tau=8/255: push boundaries 8 grey levels away, in every pixel at once.
    criterion = AverageMarginLoss(
        p="inf", mu=20.0, tau=8 / 255, input_std=STD, gradient="finite_difference"
    )
    for epoch in range(arguments.epochs):
        for images, target in DataLoader(small_images(), batch_size=50, shuffle=True):
            inputs = (images - MEAN[:, None, None]) / STD[:, None, None]
            optimizer.zero_grad()
            out = criterion.run(model, inputs, target)
            out.loss.backward()
            optimizer.step()
        average = 255 * float(out.statistics.average_margin)
        print(f"epoch {epoch + 1}: average margin {average:.2f} grey levels")


if __name__ == "__main__":
    main()
