"""Every example runs as a script, on little data."""

from __future__ import annotations

import difflib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("script", "told"),
    [("plain_loop_after.py", "average_margin="), ("normalised_inputs.py", "grey levels")],
)
def test_scripts(script, told):
    assert told in run(script, "--epochs", "1")


def test_the_plain_loop_differs_by_five_lines():
    before, after = (
        (EXAMPLES / f"plain_loop_{name}.py").read_text().splitlines()[1:]
        for name in ("before", "after")
    )
    changes = list(difflib.ndiff(before, after))
    added = [line[2:] for line in changes if line.startswith("+ ") and line[2:].strip()]
    assert len(added) <= 5, added


def test_ddp():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runner = EXAMPLES.parent / "tests" / "distributed" / "leave_at_once.py"
    told = run(*command, str(runner), "train_ddp.py", "--epochs", "1", "--images", "200")
    assert "average margin" in told


@pytest.mark.parametrize(
    ("script", "framework", "arguments", "told"),
    [
        ("lightning_training.py", "lightning", [], "average_margin"),
        ("huggingface_trainer.py", "transformers", ["--images", "150"], "average_margin="),
    ],
)
def test_frameworks(script, framework, arguments, told):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed (an extra of the package)")
    assert told in run(script, "--epochs", "1", *arguments)
