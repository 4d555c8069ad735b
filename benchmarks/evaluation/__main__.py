"""Compare our attacks with those of AutoAttack, adv-lib and Foolbox.

    python -m benchmarks.evaluation --data-dir FOLDER [--networks FOLDER] [--cases ...]

Networks are loaded from --networks, or trained and kept there. Every result is written to
docs/results/evaluation.json as it comes, and none is computed twice. The tables of
docs/evaluation.md are written last; without --data-dir only they are. A library that is not
installed is named and skipped: pip install 'margin_ext[attacks,adv-lib]'.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import environment
from benchmarks.evaluation.instruments import (
    DISTANCES,
    OURS,
    RADIUS_ATTACKS,
    Instrument,
    why_missing,
)
from benchmarks.evaluation.networks import CASES, load_case
from benchmarks.evaluation.page import write_tables
from margin_ext.integrations.attack_distance import AttackDistance
from margin_ext.output.json_file import write_json
from margin_ext.threat import ThreatModel

RESULTS = environment.ROOT / "docs" / "results" / "evaluation.json"
PAGE = environment.ROOT / "docs" / "evaluation.md"
# Images whose distances are compared.
MEASURED = 100


class Comparison:
    """The results file, and what is added to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = {"cases": {}}
        if path.exists():
            self.results = json.loads(path.read_text())

    def add(self, name: str, given: argparse.Namespace) -> None:
        """Run on a case every chosen instrument that has no result yet."""
        case = CASES[name]
        model, x, y = load_case(case, given.data_dir, given.networks, given.first, given.count)
        threat = ThreatModel(p=case.p, data_range=(0.0, 1.0))
        with torch.no_grad():
            correct = model(x).argmax(dim=1) == y
        entry = self.results["cases"].setdefault(
            name,
            {
                "p": threat.name,
                "eps": case.eps,
                "first": given.first,
                "correct": _bits(correct),
                "attacks": {},
                "distances": {},
            },
        )
        if (entry["first"], entry["correct"]) != (given.first, _bits(correct)):
            raise SystemExit(f"{self.path} holds {name} for another network or other images")
        for one in _usable(RADIUS_ATTACKS, given.attacks, case.p, entry["attacks"]):
            left = correct.clone()
            for earlier in one.after:
                left &= ~_flags(entry["attacks"][earlier]["broken"])
            rows = left.nonzero().squeeze(1)
            broken = torch.zeros_like(correct)
            distance, result = _judged(one, model, x[rows], y[rows], threat, case.eps)
            # A point that is farther by a rounding counts, whoever found it.
            broken[rows] = distance <= case.eps * (1 + 1e-5)
            entry["attacks"][one.name] = {"broken": _bits(broken), **result}
            self._save(f"{name}: {one.library} {one.title}: {int(broken.sum())} broken", result)
        rows = correct.nonzero().squeeze(1)[:MEASURED]
        for one in _usable(DISTANCES, given.distances, case.p, entry["distances"]):
            distance, result = _judged(one, model, x[rows], y[rows], threat, case.eps)
            found = [round(d, 6) if math.isfinite(d) else None for d in distance.tolist()]
            entry["distances"][one.name] = {"distance": found, **result}
            self._save(f"{name}: {one.library} {one.title}", result)

    def _save(self, words: str, result: dict[str, Any]) -> None:
        print(f"{words}, {result['seconds']:.1f} s", flush=True)
        self.results["environment"] = environment.describe("cpu")
        write_json(self.path, self.results)


def _usable(
    instruments: Sequence[Instrument], chosen: Sequence[str], p: float, known: dict[str, Any]
) -> Iterator[Instrument]:
    """Those that are chosen, exist for the norm, are installed and have no result yet."""
    for one in instruments:
        # What runs before a part may have been added to the results since this loop began.
        ready = all(name in known for name in one.after)
        wanted = ready and one.name in chosen and one.name not in known and p in one.norms
        if wanted and why_missing(one.library) is None:
            yield one


def _judged(
    one: Instrument, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: float
) -> tuple[Tensor, dict[str, Any]]:
    """Distances [B] of the points that count, the CPU seconds of the attack, and its version."""
    begun = time.process_time()
    points = one.run(model, x, y, threat, eps) if len(y) else x
    seconds = time.process_time() - begun
    found = AttackDistance(lambda *_: points, "points")(model, x, y, threat=threat)
    return found.distance, {
        "seconds": round(seconds, 2),
        "version": version("margin_ext" if one.library == OURS else one.library),
    }


def _bits(flags: Tensor) -> str:
    return "".join(str(int(one)) for one in flags.tolist())


def _flags(bits: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST's idx files, or CIFAR-10's npz")
    parser.add_argument("--networks", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    for option, instruments in (("--attacks", RADIUS_ATTACKS), ("--distances", DISTANCES)):
        names = [one.name for one in instruments]
        parser.add_argument(option, nargs="*", choices=names, default=names)
    parser.add_argument("--first", type=int, default=0, help="number of the first test image")
    parser.add_argument("--count", type=int, default=500, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results file")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that gets the tables")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.data_dir is not None:
        for library in {one.library for one in (*RADIUS_ATTACKS, *DISTANCES)}:
            if missing := why_missing(library):
                print(missing)
        comparison = Comparison(given.out)
        for name in given.cases:
            with warnings.catch_warnings():
                # Libraries warn of their own deprecations.
                warnings.simplefilter("ignore")
                comparison.add(name, given)
    write_tables(json.loads(given.out.read_text()), given.page)


if __name__ == "__main__":
    main()
