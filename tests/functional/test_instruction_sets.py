"""The CPU kernels are compiled once per instruction set. The tests run on the best one that the
processor has; here a part of them runs on each of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from margin_ext import backend_info
from margin_ext._extension import cpu_library

HERE = Path(__file__).resolve().parent
VARIABLE = "MARGIN_EXT_INSTRUCTION_SET"

pytestmark = pytest.mark.skipif(not cpu_library.loaded, reason="no CPU library")

# Every type, norm and vector tail; ties, NaN and infinities, whose handling is vectorised by hand;
# memory layouts with channels; the chunks.
PART = (
    "(accuracy and (2x1 or 9x33 or 17x129 or 100x3072)) or ties or nothing_else"
    " or (layouts and test_loss and not large)"
)
FILES = ["test_accuracy.py", "test_extremes.py", "test_layouts.py"]


def run(*arguments: str, instruction_set: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, VARIABLE: instruction_set},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def probe(instruction_set: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch, margin_ext\n"
        "print(margin_ext.backend_info().cpu_instruction_set)\n"
        "print(margin_ext.logit_gap(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).gap.item())"
    )
    return run("-c", code, instruction_set=instruction_set)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.slow
def test_part_of_the_tests_on_another_instruction_set(instruction_set):
    found = probe(instruction_set)
    if found.returncode != 0:
        assert f"{VARIABLE} must be one of" in found.stderr
        pytest.skip(f"{instruction_set} is not built or not run by this processor")
    assert found.stdout.split() == [instruction_set, "2.0"]
    if os.environ.get(VARIABLE, backend_info().cpu_instruction_set) == instruction_set:
        pytest.skip(f"{instruction_set} is what all tests run on")
    files = [str(HERE / name) for name in FILES]
    done = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"cpu and ({PART})", *files),
        instruction_set=instruction_set,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("wrong", ["sse9", "AVX2 "])
def test_an_unknown_instruction_set_is_an_error_at_the_first_use(wrong):
    done = probe(wrong)
    assert done.returncode != 0
    # backend_info still works, so that doctor can tell.
    assert done.stdout.split() == ["None"]
    assert f"ValueError: {VARIABLE} must be one of" in done.stderr
    assert f"baseline (built, and run by this processor), got {wrong}" in done.stderr


def test_an_empty_value_means_the_best():
    found = probe("")
    assert found.stdout.split()[1] == "2.0"
