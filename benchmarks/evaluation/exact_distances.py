"""Our distances against exact ones, of small random ReLU networks with two inputs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.certified import mlp, scanned_distance
from margin_ext.bounds import MinimumDistance
from margin_ext.output.json_file import write_json
from margin_ext.threat import ThreatModel

__all__ = ["EXACT", "SEARCHES", "compare_with_exact"]

EXACT = "exact.json"
SEARCHES = {"minimum": MinimumDistance(), "thorough": MinimumDistance.thorough()}
# Networks of three hidden layers of 16, and points of each.
_SIZES = (2, 16, 16, 16, 4)
_NETWORKS, _POINTS = 8, 25


def compare_with_exact(path: Path) -> None:
    """Write the exact distances and those of each search, with its CPU seconds."""
    threat = ThreatModel(p=2)
    result: dict[str, Any] = {"exact": [], **{name: {"distance": []} for name in SEARCHES}}
    seconds = dict.fromkeys(SEARCHES, 0.0)
    for seed in range(_NETWORKS):
        model = mlp(_SIZES, seed).requires_grad_(False)
        x = torch.randn(_POINTS, 2, dtype=torch.float64)
        label = model(x).argmax(dim=1)
        exact = torch.tensor(
            [scanned_distance(model, a, int(b), 2.0) for a, b in zip(x, label, strict=True)]
        )
        reached = exact.isfinite()
        nearest = exact[reached]
        for name, search in SEARCHES.items():
            begun = time.process_time()
            found = search(model, x[reached], label[reached], threat=threat).distance
            seconds[name] += time.process_time() - begun
            result[name]["distance"] += found.tolist()
            # A scan is as exact as its steps are short.
            nearest = torch.minimum(nearest, found)
        result["exact"] += nearest.tolist()
    for name in SEARCHES:
        result[name]["seconds"] = round(seconds[name], 2)
    write_json(path, {**result, "environment": environment.describe("cpu")})
