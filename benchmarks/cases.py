"""Measuring one case after another: what is there is skipped, what fails does not stop the rest."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks import arguments
from benchmarks.results import Results

Case = dict[str, Any]


def measure_all(
    results: Results,
    given: argparse.Namespace,
    listed: Iterable[tuple[str, Callable[[], Case]]],
    summary: Callable[[Case], list[str]],
) -> None:
    """Measure every case that is wanted and not there yet, and save each at once.

    Args:
        results: Where they go.
        given: The command line; --only chooses.
        listed: Name of each case, and what measures it.
        summary: A case in a line, for the eye.

    Raises:
        SystemExit: Some failed: a wrong result, or too little memory. A later run tries them again.
    """
    failed = []
    for name, measure in listed:
        if results.has(name) or not arguments.wanted(given, name):
            continue
        begun = time.perf_counter()
        try:
            case = measure()
        except (AssertionError, RuntimeError) as error:
            failed.append(name)
            arguments.shown([name, f"FAILED: {error}"])
            continue
        finally:
            gc.collect()
            if given.device == "cuda":
                torch.cuda.empty_cache()
        results.add(case)
        arguments.shown([name, *summary(case), f"({time.perf_counter() - begun:.0f} s)"])
    complete = not failed and not given.only
    arguments.shown([f"wrote {results.finish() if complete else results.path}"])
    if failed:
        raise SystemExit(f"{len(failed)} cases failed: {'; '.join(failed)}")
