"""Starts a script, or a module after -m, in several processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["require_gloo", "run_on_ranks"]

HERE = Path(__file__).parent


def require_gloo() -> None:
    """Skip the module's tests where torch cannot start processes on the CPU."""
    torch_distributed = pytest.importorskip("torch.distributed")
    if not torch_distributed.is_available() or not torch_distributed.is_gloo_available():
        pytest.skip("this torch has no gloo", allow_module_level=True)


def run_on_ranks(size: int, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What torchrun gives.

    Args:
        size: Number of processes.
        words: The script, or -m and the module, and its arguments.
        cwd: Where it runs.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), str(HERE / "leave_at_once.py"), *words]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
