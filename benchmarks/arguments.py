"""The command line that every part of the suite shares."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Results, default_path


def parser(text: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=(text or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/...")
    made.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test, no figures")
    made.add_argument("--fresh", action="store_true", help="do not continue an earlier file")
    made.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    made.add_argument("--only", default="", help="regular expression that names of cases match")
    return made


def results(part: str, given: argparse.Namespace, **settings: Any) -> Results:
    """Where this run's results go."""
    path = given.out or default_path(part, given.device, given.quick)
    settings["threads"] = torch.get_num_threads()
    return Results(path, part, given.device, settings, quick=given.quick, fresh=given.fresh)


def wanted(given: argparse.Namespace, name: str) -> bool:
    return re.search(given.only, name) is not None


@contextmanager
def run(given: argparse.Namespace) -> Iterator[None]:
    """Apply --device and --threads, and say so early where they cannot be had."""
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is at hand; leave --device cuda out")
    threads = torch.get_num_threads()
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shown(values: Sequence[str]) -> None:
    """One line of progress; the tables come from the report."""
    print("  ".join(values), flush=True)
