"""Train every method on one problem and evaluate it.

    python -m benchmarks.robust_training mnist_mlp --data-dir FOLDER [--methods ...] [--seeds ...]

Results go to docs/results/PROBLEM.json after every run; what is found there, or in the checkpoints,
is not computed again. Without --data-dir nothing is trained: the tables are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.robust_training.methods import METHODS
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.runs import Comparison
from benchmarks.robust_training.tables import tables

RESULTS = environment.ROOT / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--data-dir", type=Path, help="MNIST's idx files, or CIFAR-10's npz")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/robust_training"))
    given = parser.parse_args()
    if given.data_dir is not None:
        torch.set_num_threads(given.threads)
        comparison = Comparison(given.problem, given.data_dir, given.out, given.work)
        comparison.run(given.methods, given.seeds, lambda line: print(line, flush=True))
    print(tables(given.out / f"{given.problem}.json"))


if __name__ == "__main__":
    main()
