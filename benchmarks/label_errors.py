"""Which record of training finds wrong labels best? A tenth of the labels is flipped to find out.

    python -m benchmarks.label_errors --mnist FOLDER --cifar cifar10_small.npz --out FOLDER

Each sample's gap, first-order margin, loss and probability margin are averaged over the epochs, and
the samples are ranked by them. As many samples are called wrong as there are wrong labels; the
figure is the share of the wrong labels that is missed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss
from margin_ext.data.idx_files import load_mnist
from margin_ext.ledger import MarginLedger
from margin_ext.output.figure_style import COLORS, GREY, plain

TITLES = {
    "gap": "average gap",
    "loss": "average loss",
    "probability": "average probability margin",
    "margin": "average first-order margin",
    "forgotten": "forgetting events",
}


def network(channels: int, side: int) -> nn.Sequential:
    left = ((side - 2) // 2 - 2) // 2
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * left * left, 128), nn.GELU(), nn.Linear(128, 10)),
    )


def flipped(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels of which a share is wrong, and which [N]."""
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    shift = torch.randint(1, 10, labels.shape, generator=generator)
    return torch.where(wrong, (labels + shift) % 10, labels), wrong


def records(images: Tensor, labels: Tensor, epochs: int, seed: int) -> dict[str, Tensor]:
    """For each record of training a value a sample, lower where the label is more suspect."""
    torch.manual_seed(seed)
    model = network(images.shape[1], images.shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # mu = 0 is plain cross-entropy; the margins are only looked at.
    criterion = AverageMarginLoss(p=2, mu=0.0, gradient="detached")
    ledgers = {name: MarginLedger(len(labels)) for name in ("gap", "loss", "probability", "margin")}
    for epoch in range(epochs):
        for index in torch.randperm(len(labels)).split(64):
            target = labels[index]
            out = criterion.run(model, images[index], target)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            chance = out.logits.detach().softmax(dim=1)
            own = chance.gather(1, target[:, None])[:, 0]
            others = chance.scatter(1, target[:, None], -1.0).amax(dim=1)
            ledgers["gap"].update(index, out.gap)
            ledgers["margin"].update(index, out.margin)
            ledgers["probability"].update(index, own - others)
            ledgers["loss"].update(index, own.clamp_min(1e-30).log())
        print(f"  epoch {epoch + 1}: {criterion.statistics}", flush=True)
    found = {name: ledger.average for name, ledger in ledgers.items()}
    # Samples that were never learnt have no events: they are the most suspect of all.
    never = (ledgers["gap"].forgotten == 0) & (ledgers["gap"].average < 0)
    found["forgotten"] = -torch.where(never, epochs, ledgers["gap"].forgotten).double()
    return found


def missed(values: Tensor, wrong: Tensor) -> float:
    """Share of the wrong labels that are not among as many lowest values."""
    called = values.argsort()[: int(wrong.sum())]
    return round(1 - float(wrong[called].double().mean()), 6)


def study(
    name: str, images: Tensor, labels: Tensor, epochs: int, seeds: int
) -> tuple[dict[str, Any], Tensor]:
    """Figures of one data set, and the average gaps of the last seed with what was wrong."""
    runs: list[dict[str, float]] = []
    for seed in range(seeds):
        print(f"{name}, seed {seed}", flush=True)
        given, wrong = flipped(labels, 0.1, torch.Generator().manual_seed(seed))
        found = records(images, given, epochs, seed)
        runs.append({key: missed(values, wrong) for key, values in found.items()})
        print(f"  missed: {runs[-1]}", flush=True)
    last = torch.stack([found["gap"], given.double(), wrong.double()])
    return {"samples": len(labels), "epochs": epochs, "missed": runs}, last


def figure(results: dict[str, Any], images: Tensor, names: list[str], last: Tensor) -> Any:
    """Bars of what was missed, and the worst images of the last data set."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.5, 5.4), dpi=150, layout="constrained")
    top, bottom = drawn.subfigures(2, 1, height_ratios=(1.25, 1))
    for ax, (name, found) in zip(top.subplots(1, len(results)), results.items(), strict=True):
        for place, key in enumerate(TITLES):
            values = [run[key] for run in found["missed"]]
            color = COLORS[0] if key == "gap" else GREY
            ax.barh(place, np.mean(values), color=color, height=0.65)
            ax.plot(values, [place] * len(values), "o", color="black", markersize=3)
            ax.text(max(values) + 0.03, place, f"{np.mean(values):.3f}", va="center", fontsize=8)
        ax.set_yticks(range(len(TITLES)), TITLES.values())
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_title(f"{name}: {found['samples']:,} images, {found['epochs']} epochs", fontsize=9)
        plain(ax, "share of the wrong labels that is missed", "")
        ax.grid(False, axis="y")
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_size(8)
    average, given, wrong = last
    for ax, i in zip(bottom.subplots(2, 8).flat, average.argsort()[:16].tolist(), strict=True):
        ax.imshow(images[i].permute(1, 2, 0).numpy())
        word = "flipped" if wrong[i] else "as in the data"
        ax.set_title(f"{names[int(given[i])]}\n({word})", fontsize=6.5)
        ax.axis("off")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--cifar", type=Path, required=True, help="npz: train_images, train_labels")
    parser.add_argument("--out", type=Path, default=Path("runs/label_errors"))
    parser.add_argument("--images", type=int, default=10_000, help="of each data set")
    parser.add_argument("--epochs", type=int, nargs=2, default=(6, 12))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    digits, digit_labels = load_mnist(arguments.mnist, train=True)
    with np.load(arguments.cifar) as stored:
        pictures = torch.from_numpy(stored["train_images"]).float() / 255
        picture_labels = torch.from_numpy(stored["train_labels"]).long()
        names = [str(name) for name in stored["class_names"]]
    results = {}
    for name, images, labels, epochs in (
        ("MNIST", digits, digit_labels, arguments.epochs[0]),
        ("CIFAR-10, a part", pictures, picture_labels, arguments.epochs[1]),
    ):
        kept = images[: arguments.images], labels[: arguments.images]
        results[name], last = study(name, *kept, epochs, arguments.seeds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "label_errors.json").write_text(json.dumps(results, indent=1) + "\n")
    figure(results, pictures, names, last).savefig(arguments.out / "label_errors.png")


if __name__ == "__main__":
    main()
