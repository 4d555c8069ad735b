"""Compiles the sources of csrc/cuda for the model, and reads what ptxas says of the kernels."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from functools import cache

from simt.kernel_library import CSRC, ROOT

from kernel_model.sass import Kernel, disassemble

__all__ = ["compiled", "kernel_named", "nvcc", "resources"]


def nvcc() -> str | None:
    """Return the compiler, where there is one."""
    return shutil.which("nvcc")


@cache
def compiled(source: str, architecture: int) -> tuple[tuple[Kernel, ...], str]:
    """Return the kernels of a source file, and what ptxas says of them. Kept in build/."""
    tool = nvcc()
    assert tool is not None
    state = hashlib.sha256((CSRC / "cuda" / source).read_bytes())
    for file in sorted([*(CSRC / "core").glob("*.h"), *(CSRC / "cuda").glob("*.h")]):
        state.update(file.read_bytes())
    folder = ROOT / "build" / "kernel_model"
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{source}-{architecture}-{state.hexdigest()[:16]}.cubin"
    log = cubin.with_suffix(".txt")
    if not log.exists():
        command = [tool, "-std=c++20", "-O3", "-DNDEBUG", f"-arch=sm_{architecture}", "-cubin"]
        command += ["-Xptxas", "-v", f"-I{CSRC}", str(CSRC / "cuda" / source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        log.write_text(done.stderr)
    return tuple(disassemble(cubin)), log.read_text()


@cache
def resources(source: str, architecture: int) -> dict[str, tuple[int, int, int]]:
    """Return registers, spilled bytes and static shared bytes of each kernel, by mangled name."""
    found = {}
    for entry in re.finditer(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(.*?)\n",
        compiled(source, architecture)[1],
        re.DOTALL,
    ):
        shared = re.search(r"(\d+) bytes smem", entry[5])
        spilled = int(entry[2]) + int(entry[3])
        found[entry[1]] = (int(entry[4]), spilled, int(shared[1]) if shared else 0)
    return found


def kernel_named(source: str, architecture: int, pattern: str) -> Kernel:
    """Return the one kernel of a source file whose mangled name has the pattern."""
    kernels = compiled(source, architecture)[0]
    found = [kernel for kernel in kernels if re.search(pattern, kernel.name)]
    assert len(found) == 1, (pattern, [kernel.name for kernel in kernels])
    return found[0]
