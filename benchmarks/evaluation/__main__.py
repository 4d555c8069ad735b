"""Compare our attacks with those of AutoAttack, adv-lib and Foolbox.

    python -m benchmarks.evaluation --data-dir FOLDER [--networks FOLDER] [--cases ...]

FOLDER holds folders mnist and cifar10. Networks are loaded from --networks, or trained and kept
there. Every result is written to docs/results/evaluation as it comes, and none is computed twice: a
run that was stopped goes on, and several runs at the same time share the cases. The tables of
docs/evaluation.md are written last; without --data-dir only they are. A library that is not
installed is named and skipped: pip install 'margin_ext[attacks,adv-lib]'.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.evaluation.case_results import CaseResults, read_results, result_file
from benchmarks.evaluation.exact_distances import EXACT, compare_with_exact
from benchmarks.evaluation.instruments import DISTANCES, RADIUS_ATTACKS, why_missing
from benchmarks.evaluation.networks import CASES, load_case
from benchmarks.evaluation.page import write_tables
from margin_ext.output.exclusive import InUseError, exclusive
from margin_ext.output.json_file import read_json

RESULTS = environment.ROOT / "docs" / "results" / "evaluation"
PAGE = environment.ROOT / "docs" / "evaluation.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, help="holds folders mnist and cifar10")
    parser.add_argument("--networks", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    for option, instruments in (("--attacks", RADIUS_ATTACKS), ("--distances", DISTANCES)):
        names = [one.name for one in instruments]
        parser.add_argument(option, nargs="*", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="run those that are named once more")
    parser.add_argument("--first", type=int, default=0, help="number of the first test image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that gets the tables")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.data_dir is not None:
        for library in sorted({one.library for one in (*RADIUS_ATTACKS, *DISTANCES)}):
            if missing := why_missing(library):
                print(missing)
        for name in given.cases:
            if not _run(name, given):
                print(f"{name}: left to the run that is at it")
        if given.again or not (given.out / EXACT).exists():
            compare_with_exact(given.out / EXACT)
    exact = read_json(given.out / EXACT) if (given.out / EXACT).exists() else None
    write_tables(read_results(given.out, list(CASES)), exact, given.page)


def _run(name: str, given: argparse.Namespace) -> bool:
    """Complete the results of a case; False where another run is at it."""
    path = result_file(given.out, name)
    try:
        with exclusive(path):
            _complete(name, path, given)
    except InUseError:
        return False
    return True


def _complete(name: str, path: Path, given: argparse.Namespace) -> None:
    """Run on a case every chosen instrument that has no result yet."""
    case = CASES[name]
    loaded = load_case(case, given.data_dir, given.networks, given.first)
    results = CaseResults(path, case, *loaded, given.first)
    if given.again:
        results.forget(given.attacks, given.distances)
    with warnings.catch_warnings():
        # Libraries warn of their own deprecations.
        warnings.simplefilter("ignore")
        results.attack([one for one in RADIUS_ATTACKS if one.name in given.attacks])
        results.measure([one for one in DISTANCES if one.name in given.distances])


if __name__ == "__main__":
    main()
