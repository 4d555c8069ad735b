"""Time of class_margins against eager PyTorch and torch.compile, in one process.

    python -m benchmarks.class_margins [--threads 1] [--repeats 20] [--out FILE]

The three alternate, and the best time of each counts, because the machine may be shared. Bytes are
those of the gradient, which the op reads once and the composition once for each norm.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import environment
from margin_ext.functional import class_margins

NORMS = (2, math.inf, 1)
SHAPES = ((16, 64, 784), (16, 64, 3072), (16, 16, 150528))


def composed(gap: Tensor, grad: Tensor, p: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """What the op computes, in PyTorch's own operations."""
    dual = {1: math.inf, math.inf: 1.0}
    norm = torch.stack([torch.linalg.vector_norm(grad, dual.get(one, 2.0), dim=2) for one in p])
    margin = torch.where(norm == 0, gap.sign() * math.inf, gap / norm)
    margin = torch.where(gap == 0, 0.0, margin)
    return margin, norm, margin.argmin(dim=2)


def best(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    times = dict.fromkeys(runs, math.inf)
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if repeat:
                times[name] = min(times[name], time.perf_counter() - begun)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compiled = torch.compile(composed)
    cases = []
    for shape in SHAPES:
        for p in ((2,), NORMS):
            gap, grad = torch.randn(shape[:2]), torch.randn(shape)
            times = best(
                {
                    "op": lambda: class_margins(gap, grad, p=p),  # noqa: B023
                    "eager": lambda: composed(gap, grad, p),  # noqa: B023
                    "compiled": lambda: compiled(gap, grad, p),  # noqa: B023
                },
                given.repeats,
            )
            case = {"shape": shape, "norms": len(p), "bytes": grad.nbytes, "seconds": times}
            cases.append(case)
            op = times["op"]
            print(
                f"{shape} {len(p)} norms: {op * 1e3:.2f} ms, "
                f"eager {times['eager'] / op:.1f} x, compiled {times['compiled'] / op:.1f} x",
                flush=True,
            )
    if given.out is not None:
        result = {"environment": environment.describe("cpu"), "threads": given.threads}
        given.out.write_text(json.dumps({**result, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
