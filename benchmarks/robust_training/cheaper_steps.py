"""What it costs in robustness to take margins of a part of the batch, or in some steps only.

    python -m benchmarks.robust_training.cheaper_steps --data-dir MNIST

The MNIST CNN of the comparison, trained with each option at one setting and judged as settings are
chosen there: on validation images, by a search for the nearest adversarial example. Results go to
docs/results/cheaper_steps.json; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import environment
from benchmarks.robust_training.evaluate_network import BOX, Suite, accuracy
from benchmarks.robust_training.problems import PROBLEMS, Problem
from benchmarks.robust_training.samples import bits, read_bits
from benchmarks.robust_training.tables import fraction, with_error
from margin_ext import AverageMarginLoss, Distance, FiniteDifference
from margin_ext.data.image_data import ImageData
from margin_ext.output.atomic_write import write_text
from margin_ext.training import Objective, TrainingLoop

__all__ = ["MARGINS", "OPTIONS", "cheaper_steps_table"]

RESULTS = environment.ROOT / "docs" / "results" / "cheaper_steps.json"
_PROBLEM = "mnist_cnn"
# The settings that the comparison has for them, at 1.25 times the radius.
MARGINS: dict[str, dict[str, Any]] = {
    "first-order margin": {"mu": 2.0, "gradient": FiniteDifference(unit="margin", step=1)},
    "distance": {"mu": 0.8, "margin": Distance(steps=2, data_range=BOX)},
}
_TAU = 1.25
OPTIONS: dict[str, dict[str, Any]] = {
    "all samples in every step": {},
    "`fraction=0.5`": {"fraction": 0.5},
    "`fraction=0.25`": {"fraction": 0.25},
    "`every=2`": {"every": 2},
    "`every=4`": {"every": 4},
}


def trained_and_judged(
    problem: Problem, data: ImageData, suite: Suite, options: dict[str, Any]
) -> dict[str, Any]:
    """One training, on validation images."""
    objective = Objective(AverageMarginLoss(tau=_TAU * problem.aim, **options))
    recipe = dataclasses.replace(problem.recipe, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        loop = TrainingLoop(problem.model(0), data.train, objective, recipe, checkpoint)
        start = time.process_time()
        for _ in loop.epochs():
            pass
        seconds = time.process_time() - start
    held = suite.choose_by(loop.result, data.validation, problem.aim)
    return {
        "accuracy": accuracy(loop.result, *data.validation),
        "held": bits(held),
        "cpu_seconds": round(seconds, 2),
    }


def cheaper_steps_table(path: Path = RESULTS) -> str:
    """What stands in the results."""
    if not path.exists():
        return "Not run yet."
    results = json.loads(path.read_text())["runs"]
    lines = [
        "| margin | margins of | accuracy | beyond the radius | minus all | CPU time over all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for margin in MARGINS:
        found = {option: results.get(f"{margin}, {option}") for option in OPTIONS}
        whole = found[next(iter(OPTIONS))]
        for option, run in found.items():
            if run is None or whole is None:
                continue
            held, of_all = (read_bits(one["held"]).astype(float) for one in (run, whole))
            difference = held - of_all
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            cells = [
                margin,
                option,
                fraction(run["accuracy"], 4),
                fraction(float(held.mean())),
                "-" if run is whole else with_error(float(difference.mean()), float(error)),
                f"{run['cpu_seconds'] / whole['cpu_seconds']:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="MNIST's idx files")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    problem = PROBLEMS[_PROBLEM]
    data, suite = problem.load(given.data_dir), Suite(problem.targets)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    for margin, own in MARGINS.items():
        for option, more in OPTIONS.items():
            name = f"{margin}, {option}"
            if name in results["runs"]:
                continue
            # The distance's weight, mu times every, is at most 1.
            most = 1 / more.get("every", 1) if "margin" in own else own["mu"]
            options = {**own, **more, "mu": min(own["mu"], most)}
            results["runs"][name] = trained_and_judged(problem, data, suite, options)
            results["environment"] = environment.describe("cpu")
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(name, results["runs"][name]["accuracy"], flush=True)
    print(cheaper_steps_table())


if __name__ == "__main__":
    main()
