"""Builds csrc/cuda for the emulator, with its bindings, into build/simt; once for each state."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from simt import toolchain

ROOT = toolchain.SIMT.parents[1]
CSRC = ROOT / "csrc"
BINDINGS = toolchain.SIMT / "margin_kernels.cpp"

# -O1 runs ten times as fast as -O0; -O2 takes longer to compile than it saves.
PLAIN = ("-O1",)


def missing() -> str | None:
    """Says what is lacking on this machine; None if nothing."""
    if (reason := toolchain.missing()) is not None:
        return reason
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers are not installed"
    return None


def _sources() -> list[Path]:
    kernels = sorted([*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")])
    return [BINDINGS, *kernels]


def _folder(flags: tuple[str, ...]) -> Path:
    """Where the library for these flags and the present sources belongs."""
    state = hashlib.sha256(" ".join([sys.version, *flags]).encode())
    headers = [*(CSRC / "core").glob("*.h"), *(CSRC / "cuda").glob("*.h")]
    for file in sorted([*_sources(), *headers, *toolchain.INCLUDE.rglob("*.h")]):
        state.update(file.read_bytes())
    return ROOT / "build" / "simt" / state.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def build(flags: tuple[str, ...] = PLAIN) -> Path:
    """The library; compiled where it is not there yet."""
    import pybind11

    folder = _folder(flags)
    library = folder / f"margin_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    common = [*flags, "-fPIC", "-fvisibility=hidden", f"-I{CSRC}", "-DMARGIN_EXT_SIMT"]
    # 16-byte loads of arrays of smaller numbers are what the kernels are about.
    common.append("-fno-strict-aliasing")
    for include in (pybind11.get_include(), sysconfig.get_paths()["include"]):
        common += ["-isystem", include]
    objects = {source: folder / f"{source.name}.{os.getpid()}.o" for source in _sources()}
    commands = [
        toolchain.compile_command(*common, "-x", "c++", "-c", source, "-o", target)
        for source, target in objects.items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    # Another process may build the same: the last to finish replaces an equal file.
    finished = folder / f"{os.getpid()}.so"
    _run(
        toolchain.compile_command(
            *flags, "-shared", *objects.values(), "-o", finished, "-ldl"
        )
    )
    for target in objects.values():
        target.unlink()
    finished.replace(library)
    return library


def load(flags: tuple[str, ...] = PLAIN) -> Any:
    """The extension module."""
    spec = importlib.util.spec_from_file_location("margin_kernels", build(flags))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
