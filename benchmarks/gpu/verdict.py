"""Collects what gpu_check.sh found into summary.json and prints one line.

python -m benchmarks.gpu.verdict OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.environment import describe


def main(out: Path) -> int:
    """Exit status 1 where a step failed."""
    steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
    results = [
        {"step": name, "status": status, "seconds": int(seconds)} for name, status, seconds in steps
    ]
    failed = [r["step"] for r in results if r["status"] not in ("ok", "skipped")]
    skipped = [r["step"] for r in results if r["status"] == "skipped"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    summary = {"environment": describe(device), "steps": results, "failed": failed}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if failed:
        print(f"VERDICT: FAILED: {', '.join(failed)}")
        return 1
    if skipped:
        print(f"VERDICT: nothing failed, but skipped without a GPU: {', '.join(skipped)}")
        return 0
    print(f"VERDICT: all {len(results)} steps passed on {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
