"""What every instrument found on one case, in a file of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import environment
from benchmarks.evaluation.instruments import (
    OURS,
    RADIUS_ATTACKS,
    REFERENCE,
    Instrument,
    why_missing,
)
from benchmarks.evaluation.networks import Case
from margin_ext.integrations.attack_distance import AttackDistance
from margin_ext.output.json_file import read_json, write_json
from margin_ext.threat import ThreatModel

__all__ = ["CaseResults", "read_results", "result_file"]

# Images whose distances are compared.
MEASURED = 100


def result_file(folder: Path, name: str) -> Path:
    """Where the results of a case are: mnist_cnn-plain-l2.json for mnist_cnn/plain/l2."""
    return folder / f"{name.replace('/', '-')}.json"


def read_results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results of every case that has some, by name."""
    files = {name: result_file(folder, name) for name in names}
    return {name: read_json(path) for name, path in files.items() if path.exists()}


@dataclass
class CaseResults:
    """The results of one case: taken up from its file, and written to it as they come.

    Attributes:
        path: The file.
        case: The norm and the radius.
        model: The network.
        x: Images [B, ...].
        y: Labels [B].
        first: Number of the first image in the test set.
    """

    path: Path
    case: Case
    model: nn.Module
    x: Tensor
    y: Tensor
    first: int

    def __post_init__(self) -> None:
        self.threat = ThreatModel(p=self.case.p, data_range=(0.0, 1.0))
        with torch.no_grad():
            self.correct = self.model(self.x).argmax(dim=1) == self.y
        identity = {
            "p": self.threat.name,
            "eps": self.case.eps,
            "first": self.first,
            "correct": _bits(self.correct),
        }
        self.entry: dict[str, Any] = {**identity, "attacks": {}, "distances": {}}
        if self.path.exists():
            self.entry = read_json(self.path)
            if {key: self.entry[key] for key in identity} != identity:
                raise SystemExit(f"{self.path} is about another network or other images")

    def forget(self, attacks: Sequence[str], distances: Sequence[str]) -> None:
        """Leave out what instruments found before, and what ran after them in a suite."""
        later = [one.name for one in RADIUS_ATTACKS if set(one.after) & set(attacks)]
        for kind, names in (("attacks", {*attacks, *later}), ("distances", set(distances))):
            known = self.entry[kind]
            self.entry[kind] = {name: known[name] for name in known if name not in names}

    def attack(self, instruments: Sequence[Instrument]) -> None:
        """Which images each attack breaks within the radius."""
        known = self.entry["attacks"]
        for one in self._missing(instruments, known):
            left = self.correct.clone()
            for earlier in one.after:
                left &= ~_flags(known[earlier]["broken"])
            rows = left.nonzero().squeeze(1)
            distance, result = self._judged(one, rows)
            broken = torch.zeros_like(self.correct)
            # A point that is farther by a rounding counts, whoever found it.
            broken[rows] = distance <= self.case.eps * (1 + 1e-5)
            known[one.name] = {"broken": _bits(broken), **result}
            self._save(f"{one.title}: {int(broken.sum())} broken", result)

    def measure(self, instruments: Sequence[Instrument]) -> None:
        """The distances of the first correct images."""
        known = self.entry["distances"]
        rows = self.correct.nonzero().squeeze(1)[:MEASURED]
        for one in self._missing(instruments, known):
            distance, result = self._judged(one, rows)
            found = [round(d, 6) if math.isfinite(d) else None for d in distance.tolist()]
            known[one.name] = {"distance": found, **result}
            self._save(one.title, result)

    def _missing(
        self, instruments: Sequence[Instrument], known: dict[str, Any]
    ) -> Iterator[Instrument]:
        """Those that exist for the norm, are installed and have no result yet."""
        for one in instruments:
            # What runs before a part may have been added since this loop began.
            ready = all(name in known for name in one.after)
            wanted = ready and one.name not in known and self.case.p in one.norms
            if wanted and why_missing(one.library) is None:
                yield one

    def _judged(self, one: Instrument, rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Distances of the points that count, the CPU seconds, and what found them."""
        x, y = self.x[rows], self.y[rows]
        begun = time.process_time()
        points = one.run(self.model, x, y, self.threat, self.case.eps) if len(y) else x
        seconds = time.process_time() - begun
        found = AttackDistance(lambda *_: points, "points")(self.model, x, y, threat=self.threat)
        library = "margin_ext" if one.library in (OURS, REFERENCE) else one.library
        return found.distance, {
            "seconds": round(seconds, 2),
            "version": version(library),
            "commit": environment.describe("cpu")["commit"],
        }

    def _save(self, words: str, result: dict[str, Any]) -> None:
        print(f"{self.path.stem}: {words}, {result['seconds']:.1f} s", flush=True)
        self.entry["environment"] = environment.describe("cpu")
        write_json(self.path, self.entry)


def _bits(flags: Tensor) -> str:
    return "".join(str(int(one)) for one in flags.tolist())


def _flags(bits: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits])
