"""A LightningModule whose training step calls the criterion.

The optimizer's step, mixed precision and the distribution over devices stay Lightning's. For
several devices take ``strategy="ddp"``, without static_graph.

    pip install 'margin_ext[lightning]'
    python examples/lightning_training.py
"""

from __future__ import annotations

import argparse

import lightning
import torch
from small_images import small_images
from torch import Tensor, nn
from torch.utils.data import DataLoader

from margin_ext import AverageMarginLoss


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10)
        )
        self.criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, gradient="auto")

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        out = self.criterion.run(self.model, *batch)
        self.log("average_margin", out.statistics.average_margin, prog_bar=True)
        self.log("accuracy", out.statistics.accuracy, prog_bar=True)
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    trainer = lightning.Trainer(
        max_epochs=parser.parse_args().epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), DataLoader(small_images(), batch_size=50, shuffle=True))
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
