"""Minimum and average margin over the epochs: the paper's figure, in every quantity.

    python -m benchmarks.robust_training.over_training --data-dir MNIST [--draw]

The linear classifier, an MLP and a CNN on MNIST, trained plainly, with the authors' regularizer,
with the first-order margin and for the distance itself. After some of the epochs, on images trained
on and on test images: the logit gap, the signed first-order margin, the distance of the nearest
adversarial example and a certified lower bound. Results go to
docs/results/margins_over_training.json, the figure to docs/images; what is there is not computed
again, and --draw only draws.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import environment
from benchmarks.robust_training.evaluate_network import BOX
from margin_ext import AverageMarginLoss, FiniteDifference
from margin_ext.bounds import Bound, Certified, MinimumDistance
from margin_ext.data import load_data
from margin_ext.data.image_data import ImageData
from margin_ext.measurement import measure
from margin_ext.models.authors_models import linear_classifier
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.figure_style import COLORS, MARKERS, plain
from margin_ext.output.finite_json import finite_json
from margin_ext.threat import ThreatModel
from margin_ext.training import AdversarialTraining, Objective, Recipe, TrainingLoop
from margin_ext.training.training_objective import TrainingObjective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = environment.ROOT / "docs" / "results" / "margins_over_training.json"
FIGURE = environment.ROOT / "docs" / "images" / "margins_over_training.png"
# Images trained on; of them and of the test images so many have margins, distances and certified
# bounds.
IMAGES, MEASURED, SEARCHED, BOUNDED = 10_000, 1000, 200, 20
# The smallest distance of all is looked for among so many with the smallest first-order margins.
NEAREST = 100
MEASURED_AFTER = (1, 2, 5, 10, 20, 40)
_BOUNDARY = FiniteDifference(unit="margin", step=1)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))


# ReLU and no pooling, so that lower bounds can be certified.
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Recipe]] = {
    "linear": ("linear", linear_classifier, Recipe(40, 128, 0.1)),
    "mlp": ("MLP 784-1024-10, ReLU", _mlp, Recipe(40, 128, 0.1)),
    "cnn": ("CNN, ReLU", _cnn, Recipe(40, 128, 0.1)),
}
# Certifying takes about a minute for the MLP, and minutes for the CNN.
CERTIFIED_AFTER = {"linear": MEASURED_AFTER, "mlp": (40,), "cnn": ()}


def objectives() -> dict[str, tuple[str, TrainingObjective]]:
    authors = AverageMarginLoss(mu=0.1, tau=40.0, margin="logit_gap", regularizer="negative_ramp")
    ours = AverageMarginLoss(mu=2.0, tau=2.5, gradient=_BOUNDARY)
    return {
        "plain": ("cross-entropy", Objective(nn.CrossEntropyLoss())),
        "authors": ("authors' regularizer, orthogonality", Objective(authors, beta=1e-3)),
        "first_order": ("first-order margin", Objective(ours)),
        "own_length": (
            "true margin: own lengths",
            AdversarialTraining(2.0, 2, length="own", memory=True),
        ),
    }


def measured(model: nn.Module, data: ImageData, certified: bool) -> dict[str, dict[str, float]]:
    """Minimum and average of every quantity on both parts."""
    found = {}
    for split, part in (("train", data.train), ("test", data.test)):
        report = measure(model, part, progress=False, limit=MEASURED, batch_size=500)
        margin = report.summary()
        values = {
            "accuracy": report.accuracy,
            "gap minimum": float(report.gap.min()),
            "gap average": float(report.gap.astype("float64").mean()),
            "first_order minimum": margin.minimum,
            "first_order average": margin.average,
        }
        distance = _distances(model, part, MinimumDistance(), SEARCHED)
        known = np.isfinite(distance)
        values["distance average"] = float(distance[known].mean())
        values["distance not found"] = int((~known).sum())
        values["distance 5 %"] = float(np.quantile(distance, 0.05, method="lower"))
        nearest = _distances(model, _nearest(model, part), MinimumDistance(), NEAREST)
        values["distance minimum"] = float(nearest.min())
        if certified:
            bound = _distances(model, part, Certified(), BOUNDED)
            values["certified minimum"] = float(bound.min())
            values["certified average"] = float(bound.mean())
        found[split] = values
    return found


def _distances(
    model: nn.Module, part: tuple[Tensor, Tensor], bound: Bound, count: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A bound on the first images' distances; 0 for misclassified ones."""
    threat = ThreatModel(p=2, data_range=BOX)
    with evaluation_mode(model):
        inputs, target = part[0][:count], part[1][:count]
        found = bound(model, inputs, target, threat=threat, indices=range(len(target)))
    return found.distance.double().numpy()


def _nearest(model: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The images with the smallest first-order margin to the runner-up."""
    report = measure(model, part, classes=1, progress=False, batch_size=500)
    chosen = torch.from_numpy(report.margin.argsort()[:NEAREST].copy())
    return part[0][chosen], part[1][chosen]


def _history(
    network: str, training: TrainingLoop, data: ImageData, path: Path
) -> list[dict[str, Any]]:
    """Train what is left; what was measured before an interruption is in the file."""
    history: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for epoch in training.epochs():
        if epoch in MEASURED_AFTER:
            history = [record for record in history if record["epoch"] < epoch]
            certified = epoch in CERTIFIED_AFTER[network]
            history.append({"epoch": epoch, **measured(training.model, data, certified)})
            text = json.dumps(finite_json(history))
            write_atomically(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    return history


def run(folder: Path, work: Path) -> None:
    """Train what is not there yet."""
    data = load_data("mnist", folder).limited(train=IMAGES, held_out=None)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    for network, (_, build, recipe) in NETWORKS.items():
        for method, (_, objective) in objectives().items():
            name = f"{network} {method}"
            if name in results["runs"]:
                continue
            torch.manual_seed(recipe.seed)
            kept = work / name.replace(" ", "_")
            training = TrainingLoop(
                build(), data.train, objective, recipe, checkpoint=kept / "checkpoint.pt"
            )
            history = _history(network, training, data, kept / "history.json")
            results["runs"][name] = {"history": history, **objective.settings()}
            results["environment"] = environment.describe("cpu")
            results["setting"] = {
                "images": IMAGES,
                "first-order and gap on": MEASURED,
                "distances on": SEARCHED,
                "smallest distance of all among": NEAREST,
                "certified bounds on": BOUNDED,
                "epochs": recipe.epochs,
                "learning_rate": recipe.learning_rate,
            }
            text = json.dumps(finite_json(results), indent=1) + "\n"
            write_atomically(RESULTS, lambda file, text=text: file.write(text.encode()))
            print(name, history[-1], flush=True)


# A diverging training would make all others one line.
LOWEST = -4.0
# Certified bounds and logit gaps are in the results too.
ROWS = (
    ("distance average", "average distance"),
    ("distance minimum", "minimum distance"),
    ("first_order average", "average first-order margin"),
    ("first_order minimum", "minimum first-order margin"),
)


def figure() -> Figure:
    """A row a quantity, a column a network; dotted: test images."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    results = json.loads(RESULTS.read_text())
    drawn = Figure(figsize=(11, 2.5 * len(ROWS)), dpi=110, layout="constrained")
    panels = drawn.subplots(len(ROWS), len(NETWORKS), squeeze=False)
    for column, (network, (title, _, _)) in enumerate(NETWORKS.items()):
        panels[0, column].set_title(title, loc="left", fontsize=11)
        for row, (quantity, label) in enumerate(ROWS):
            _panel(panels[row, column], results, network, quantity)
            panels[row, column].set_ylabel(label if column == 0 else "")
    handles = [
        Line2D([], [], color=color, marker=marker, linewidth=3, label=title)
        for (title, _), color, marker in zip(objectives().values(), COLORS, MARKERS, strict=False)
    ]
    handles += [
        Line2D([], [], color="#444444", linestyle=style, label=label)
        for style, label in (("-", "images trained on"), (":", "test images"))
    ]
    drawn.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    return drawn


def _panel(ax: Axes, results: dict[str, Any], network: str, quantity: str) -> None:
    plain(ax, "epoch", "")
    ax.set_xlim(0, MEASURED_AFTER[-1] + 1)
    later: list[float] = []
    for method, color, marker in zip(objectives(), COLORS, MARKERS, strict=False):
        run = results["runs"].get(f"{network} {method}")
        if run is None:
            continue
        for split, style in (("train", "-"), ("test", ":")):
            records = [record for record in run["history"] if quantity in record[split]]
            epochs = [record["epoch"] for record in records]
            values = [float(record[split][quantity]) for record in records]
            ax.plot(
                epochs, values, color=color, linestyle=style, linewidth=1.5, marker=marker,
                markersize=4,
            )  # fmt: skip
            later += [v for e, v in zip(epochs, values, strict=True) if e > 4 and math.isfinite(v)]
    if not later:
        ax.set_axis_off()
    else:
        # Networks that have learned little yet are flat, and their margins huge.
        least, most = max(min(later), LOWEST), max(later)
        room = 0.08 * (most - least) or 0.1
        ax.set_ylim(least - room, most + room)


def over_training_table(path: Path = RESULTS) -> str:
    """Both parts after the last epoch."""
    if not path.exists():
        return "Not run yet."
    runs = json.loads(path.read_text())["runs"]
    columns = ("accuracy", *dict(ROWS))
    heads = ("accuracy", *dict(ROWS).values())
    lines = [
        "| images trained on / test images | " + " | ".join(heads) + " |",
        "|" + " --- |" * (len(heads) + 1),
    ]
    for network, (title, _, _) in NETWORKS.items():
        for method, (name, _) in objectives().items():
            if f"{network} {method}" not in runs:
                continue
            last = runs[f"{network} {method}"]["history"][-1]
            cells = [_both(last, "accuracy", 3), *(_both(last, word, 2) for word in columns[1:])]
            lines.append("| " + " | ".join([f"{title}: {name}", *cells]) + " |")
    return "\n".join(lines)


def _both(record: dict[str, Any], quantity: str, digits: int) -> str:
    return " / ".join(f"{float(record[split][quantity]):.{digits}f}" for split in ("train", "test"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST's idx files")
    parser.add_argument("--work", type=Path, default=Path("runs/margins_over_training"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="draw what is there")
    given = parser.parse_args()
    if not given.draw:
        if given.data_dir is None:
            parser.error("--data-dir is needed to train; --draw only draws")
        torch.set_num_threads(given.threads)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        run(given.data_dir, given.work)
    figure().savefig(FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
