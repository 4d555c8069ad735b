"""Train every method on one problem and attack it, by the rules of PROTOCOL.md.

    python -m benchmarks.robust_training mnist_cnn --data-dir FOLDER [--methods ...] [--seeds ...]

Results go to docs/results/PROBLEM.json after every piece of work; what is found there, or in the
checkpoints, is not computed again. Without --data-dir nothing is trained: the table is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.robust_training.methods import METHODS
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.runs import Comparison
from benchmarks.robust_training.tables import table

RESULTS = environment.ROOT / "docs" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--data-dir", type=Path, help="MNIST's idx files, or CIFAR-10's")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/robust_training"))
    parser.add_argument("--no-timing", action="store_true", help="do not measure training times")
    parser.add_argument(
        "--seconds",
        type=float,
        help="begin no further piece of work after so much time; the status is 3 if some is left",
    )
    given = parser.parse_args()
    if given.data_dir is not None:
        torch.set_num_threads(given.threads)
        comparison = Comparison(given.problem, given.data_dir, given.out, given.work)
        complete = comparison.run(
            given.methods,
            given.seeds,
            lambda line: print(line, flush=True),
            timing=not given.no_timing,
            seconds=given.seconds,
        )
        if not complete:
            return 3
    print(table(given.out / f"{given.problem}.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
