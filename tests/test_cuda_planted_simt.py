"""Bugs planted in the kernels of the other ops, and in the additive margin, are caught."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simt import kernel_library
from simt.planted import PLANTED, Planted, plant

TESTS = Path(__file__).parent
FILES = {
    "attack_step.cu": "test_cuda_ops_simt.py",
    "class_margins.cu": "test_cuda_ops_simt.py",
    "direction.cu": "test_cuda_ops_simt.py",
    "loss.cu": "test_cuda_additive_margin_simt.py",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        kernel_library.missing() is not None,
        reason=kernel_library.missing() or "everything is there",
    ),
]


def run_tests(library: Path, source: str, tests: str) -> subprocess.CompletedProcess[str]:
    """The emulated op's own tests for float32, in a process that has the library."""
    chosen = f"{tests} and not dtype0 and not dtype1 and not dtype3"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    environment = dict(os.environ, MARGIN_EXT_SIMT_LIBRARY=str(library))
    return subprocess.run(
        [*command, str(TESTS / FILES[source])],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=TESTS.parent,
        timeout=500,
    )


@pytest.mark.parametrize(("source", "tests"), sorted({(bug.source, bug.tests) for bug in PLANTED}))
def test_without_a_bug_the_tests_pass(source: str, tests: str, tmp_path: Path) -> None:
    done = run_tests(plant(None, source, tmp_path), source, tests)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: f"{bug.tests}: {bug.name}")
def test_planted_bug_is_caught(bug: Planted, tmp_path: Path) -> None:
    done = run_tests(plant(bug, bug.source, tmp_path), bug.source, bug.tests)
    # Tests have failed, or a signal has ended the process.
    assert done.returncode == 1 or done.returncode < 0, done.stdout
