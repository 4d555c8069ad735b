"""How our kernels are launched on the GPU at hand: grids, blocks, registers, shared memory.

    python -m benchmarks.gpu.launches --out FILE

The batches are so large that the policy launches every block that the device can hold at a time:
the number of blocks is the runtime's answer to how many blocks or clusters are resident.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.gpu.full_sizes import SHAPES, call
from margin_ext._extension import require_ops


def kernel_launches(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Our kernels in a trace of torch.profiler, each launch configuration once.

    Args:
        trace: What `export_chrome_trace` has written.
    """
    found: list[dict[str, Any]] = []
    for event in trace["traceEvents"]:
        if event.get("cat") != "kernel" or "margin::cuda" not in event["name"]:
            continue
        facts = event["args"]
        launch = {
            "kernel": event["name"],
            "grid": facts.get("grid"),
            "block": facts.get("block"),
            "registers": facts.get("registers per thread"),
            "shared_bytes": facts.get("shared memory"),
            "occupancy_percent": facts.get("est. achieved occupancy %"),
        }
        if launch not in found:
            found.append(launch)
    return found


def _profiled() -> list[dict[str, Any]]:
    cases = []
    for shape in SHAPES:
        call(shape)  # what is asked once has been asked
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call(shape)
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            trace = json.loads(path.read_text())
        cases.append({"shape": shape.name, "launches": kernel_launches(trace)})
        torch.cuda.empty_cache()
    return cases


def main(line: Sequence[str] | None = None) -> None:
    """Print one line a launch and write them all as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(line)
    require_ops("cuda")
    cases = _profiled()
    for case in cases:
        if not case["launches"]:
            raise SystemExit(f"no kernel of ours was seen for {case['shape']}")
        for launch in case["launches"]:
            print(case["shape"], {**launch, "kernel": launch["kernel"][:60]})
    given.out.write_text(
        json.dumps({"environment": environment.describe("cuda"), "cases": cases}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
