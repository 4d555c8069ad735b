"""What nvcc made of the kernels: registers within the policy's budgets, no spills, wide loads.

Read off the built library, so nothing is compiled here; it needs no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from margin_ext._extension import LIBRARY_FOLDER

LIBRARY = LIBRARY_FOLDER / "libmargin_ext_cuda.so"
POLICY = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "policy.h"
# The architecture whose registers have budgets: Hopper, for which the goals are set.
ARCHITECTURE = "sm_90"
# float64 is there to check gradients with: its registers are bounded by the launch, not budgeted.
DOUBLE = re.compile(r"kernelId")


def cuobjdump() -> str | None:
    """The tool of the CUDA toolkit, or of PyPI's nvidia-cuda-cuobjdump."""
    packaged = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump"))
    return str(packaged[0]) if packaged else shutil.which("cuobjdump")


pytestmark = [
    pytest.mark.skipif(not LIBRARY.is_file(), reason="the CUDA library is not built"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump on this machine"),
]


@cache
def dump(*arguments: str) -> str:
    tool = cuobjdump()
    assert tool is not None
    found = subprocess.run([tool, *arguments, LIBRARY], capture_output=True, text=True, check=True)
    return found.stdout + found.stderr


@cache
def architectures() -> list[str]:
    """Those that the library holds machine code for."""
    return sorted(set(re.findall(r"\.(sm_\d+[af]?)\.", dump("-lelf"))))


@cache
def resources(architecture: str = ARCHITECTURE) -> dict[str, dict[str, int]]:
    """By kernel: REG, STACK, SHARED, LOCAL and so on."""
    found = {}
    text = dump("-res-usage", "-arch", architecture)
    for name, values in re.findall(r"Function (\S+):\s+(REG:.*)", text):
        pairs = re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", values)
        found[name] = {key: int(value) for key, value in pairs}
    return found


def budget(name: str) -> int:
    """The registers that policy.h grants a kernel."""
    kind = "Warp" if "VariantE0E" in name else "Block"
    suffix = "16Bit" if kind == "Block" and re.search(r"_kernelI\w*Float16E", name) else ""
    match = re.search(rf"k{kind}Registers{suffix} = (\d+);", POLICY.read_text())
    assert match is not None
    return int(match[1])


def test_every_op_has_kernels():
    names = " ".join(resources())
    if not names:
        pytest.skip(f"the library was built without {ARCHITECTURE}")
    for kernel in ("loss_kernel", "direction_kernel", "margin_kernel", "logit_gap_kernel", "scale"):
        assert kernel in names


def test_nothing_spills_and_nothing_lies_in_local_memory():
    for architecture in architectures():
        for name, used in resources(architecture).items():
            assert used["STACK"] == 0, (architecture, name)
            assert used["LOCAL"] == 0, (architecture, name)


def test_registers_keep_within_the_budget():
    for name, used in resources().items():
        if DOUBLE.search(name):
            assert used["REG"] <= 255, name
        else:
            assert used["REG"] <= budget(name), name


def test_rows_are_read_and_written_sixteen_bytes_at_a_time():
    text = dump("-sass", "-arch", ARCHITECTURE)
    kernels = re.split(r"Function : (\S+)", text)[1:]
    rows = 0
    for name, code in zip(kernels[::2], kernels[1::2], strict=True):
        if re.search(r"(loss|direction)_kernelI(f|\w*Float16E)", name) is None:
            continue
        if "RowUseE0E" in name:  # no row
            continue
        rows += 1
        assert re.search(r"LDG\.E[.\w]*\.128", code), name
        assert re.search(r"STG\.E[.\w]*\.128", code), name
        assert not re.search(r"\b(LDL|STL)\b", code), name
    assert rows > 0 or not kernels
