"""Small images in an npz file, models for them, and a run of the command on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from margin_ext.command_line import main

MODELS = """
from torch import nn

def with_dropout(shape, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 16), nn.GELU(), nn.Dropout(0.3),
        nn.Linear(16, classes),
    )

def plain(shape, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 16), nn.GELU(),
        nn.Linear(16, classes),
    )

class OfNormalised(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.inner = plain(shape, classes)
    def forward(self, x):
        return self.inner(x * 0.25 + 0.5)

def too_few_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

class Interrupted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        self.steps = 0
    def forward(self, x):
        self.steps += self.training
        if self.steps > 10:
            raise KeyboardInterrupt
        return self.layers(x)
"""


def arrays(train: int = 60, test: int = 20) -> dict[str, NDArray[Any]]:
    """Bytes [N, 1, 6, 6] whose label is the brightest of three rows."""
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for part, count in (("train", train), ("test", test)):
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 120, (count, 1, 6, 6), dtype=np.uint8)
        images[np.arange(count), 0, 2 * labels] += 100
        found[f"{part}_inputs"], found[f"{part}_target"] = images, labels.astype(np.uint8)
    return found


def write_images(path: Path, **changed: NDArray[Any] | None) -> None:
    kept = {name: value for name, value in {**arrays(), **changed}.items() if value is not None}
    np.savez(path, **kept)


def train(out: Path, *options: str) -> int:
    """The command in a folder with images.npz and small_models.py."""
    return main(["train", "--out", str(out), *options])


SMALL = (
    "--data", "npz", "--data-dir", "images.npz", "--model", "small_models:with_dropout",
    "--tau", "1", "--batch-size", "16", "--epochs", "4", "--monitor-limit", "20",
    "--measure-limit", "12", "--attack-steps", "3", "--distance-steps", "5",
)  # fmt: skip


def checkpoint(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return state


def weights(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint(out)["model_state_dict"]
    return found


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
