"""Finds what the emulator is compiled with, and compiles programs for it."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

SIMT = Path(__file__).resolve().parent
INCLUDE = SIMT / "include"

# What a fused row kernel can offend. The rest of UBSan doubles the time to compile.
SANITIZE = (
    "-O0",  # an optimiser removes the reads of uninitialised variables that should be seen
    "-g1",
    "-fsanitize=address,alignment,bounds,signed-integer-overflow,shift",
    "-fno-sanitize-recover=all",
)


def cuda_include() -> Path | None:
    """The folder of CUDA's headers: from CUDA_HOME, beside nvcc, from PyPI, or the usual place."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if (nvcc := shutil.which("nvcc")) is not None:
        roots.append(Path(nvcc).resolve().parents[1])
    roots += [Path(packages) / "nvidia" / "cu13" for packages in site.getsitepackages()]
    roots.append(Path("/usr/local/cuda"))
    needed = ("cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "nv/target")
    for root in roots:
        include = root / "include"
        if all((include / name).exists() for name in needed):
            return include
    return None


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def missing() -> str | None:
    """Says what the emulator lacks on this machine; None if nothing."""
    if not sys.platform.startswith("linux"):
        return "the emulator is written for Linux"
    if compiler() is None:
        return "no C++ compiler (CXX or g++)"
    if cuda_include() is None:
        return "no CUDA headers (CUDA_HOME, nvcc or the nvidia-cuda-runtime package)"
    return None


def compile_command(*arguments: str | Path) -> list[str]:
    """The command that compiles a program or library for the emulator with further arguments."""
    command = [str(compiler()), "-std=c++20", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    # -rdynamic: messages name the kernel by its symbol.
    command += [f"-I{INCLUDE}", f"-I{SIMT}", "-isystem", str(cuda_include()), "-rdynamic"]
    return command + [str(argument) for argument in arguments]


def build(source: Path, program: Path, *flags: str) -> Path:
    """Compiles one source file to a program; an error carries the compiler's messages."""
    command = compile_command(*flags, source, "-o", program, "-ldl")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return program
