"""Are margins good for choosing: predictions to abstain from, training images to leave out?

    python -m benchmarks.selection --mnist FOLDER --cifar cifar10_small.npz --out FOLDER

Abstention: the test images are ranked by how sure the network's own prediction looks, and the least
sure are left out. The figure is the error rate among the images that are kept, averaged over all
shares that can be kept (the area under the risk-coverage curve; El-Yaniv and Wiener, JMLR 2010).

Pruning: a share of the training images is left out, by the average gap that a first training
recorded for each of them, and a new network is trained on the rest for as many steps.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.label_errors import network
from margin_ext import measure
from margin_ext.bounds import MinimumDistance
from margin_ext.data.idx_files import load_mnist
from margin_ext.ledger import MarginLedger

LEFT_OUT = 0.3


def trained(images: Tensor, labels: Tensor, steps: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A network after so many steps, and the average gap of each image [N] on the way."""
    torch.manual_seed(seed)
    model = network(images.shape[1], images.shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ledger = MarginLedger(len(labels))
    done = 0
    while done < steps:
        for index in torch.randperm(len(labels)).split(64)[: steps - done]:
            logits, target = model(images[index]), labels[index, None]
            others = logits.detach().scatter(1, target, -math.inf).amax(dim=1)
            ledger.update(index, logits.detach().gather(1, target)[:, 0] - others)
            optimizer.zero_grad()
            cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            done += 1
    return model.eval(), ledger.average


def area_under_risk(sureness: Tensor, wrong: Tensor) -> float:
    """Error rate among the surest k images, averaged over k = 1 ... N."""
    ordered = wrong[sureness.argsort(descending=True)].double()
    return float((ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)).mean())


def abstention(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The area of each ranking, of a random one and of the best that there can be."""
    with torch.no_grad():
        logits = model(images)
    predicted = logits.argmax(dim=1)
    wrong = predicted != labels
    top = logits.double().softmax(dim=1).topk(2).values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no input gradient.*", UserWarning)
        report = measure(
            model,
            (images, predicted),
            data_range=(0, 1),
            bounds=[MinimumDistance()],
            progress=False,
        )
    rankings = {
        "largest probability": top[:, 0],
        "probability margin": top[:, 0] - top[:, 1],
        "logit gap": torch.from_numpy(report.gap),
        "first-order margin": torch.from_numpy(report.first.margin),
        "minimum distance": torch.from_numpy(report.first["minimum_distance"]),
    }
    areas = {name: area_under_risk(values, wrong) for name, values in rankings.items()}
    return {
        **areas,
        "random": float(wrong.double().mean()),
        "best possible": area_under_risk(-wrong.double(), wrong),
    }


def pruning(
    images: Tensor,
    labels: Tensor,
    test: tuple[Tensor, Tensor],
    average: Tensor,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Test accuracy after training without a share of the images."""
    kept = round((1 - LEFT_OUT) * len(labels))
    generator = torch.Generator().manual_seed(seed)
    orders = {
        "the largest average gaps left out": average.argsort(),
        "the smallest average gaps left out": average.argsort(descending=True),
        "random images left out": torch.randperm(len(labels), generator=generator),
    }
    found = {}
    for name, order in orders.items():
        index = order[:kept]
        model, _ = trained(images[index], labels[index], steps, seed)
        found[name] = accuracy(model, *test)
        print(f"  {name}: {found[name]:.4f}", flush=True)
    return found


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(dim=1) == labels).double().mean())


def study(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int, seeds: int
) -> dict[str, Any]:
    """Every figure of one data set, a list of one value a seed."""
    steps = epochs * math.ceil(len(train[1]) / 64)
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(seeds):
        model, average = trained(*train, steps, seed)
        whole = {"nothing left out": accuracy(model, *test)}
        areas = abstention(model, *test)
        print(f"  seed {seed}: {whole}, {areas}", flush=True)
        rest = pruning(*train, test, average, steps, seed)
        runs.append({"abstention": areas, "pruning": {**whole, **rest}})
    figures = {
        part: {name: [run[part][name] for run in runs] for name in runs[0][part]}
        for part in ("abstention", "pruning")
    }
    return {"train": len(train[1]), "test": len(test[1]), "epochs": epochs, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--cifar", type=Path, required=True, help="npz of images and labels")
    parser.add_argument("--out", type=Path, default=Path("runs/selection"))
    parser.add_argument("--images", type=int, default=5_000, help="training images of each")
    parser.add_argument("--test-images", type=int, default=2_000, help="test images of each")
    parser.add_argument("--epochs", type=int, nargs=2, default=(6, 12))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with np.load(given.cifar) as stored:
        pictures = [
            (
                torch.from_numpy(stored[f"{part}_images"]).float() / 255,
                torch.from_numpy(stored[f"{part}_labels"]).long(),
            )
            for part in ("train", "test")
        ]
    digits = [load_mnist(given.mnist, train=part) for part in (True, False)]
    results = {}
    for name, (train, test), epochs in zip(
        ("MNIST", "CIFAR-10, a part"), (digits, pictures), given.epochs, strict=True
    ):
        print(name, flush=True)
        results[name] = study(
            (train[0][: given.images], train[1][: given.images]),
            (test[0][: given.test_images], test[1][: given.test_images]),
            epochs,
            given.seeds,
        )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "selection.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
