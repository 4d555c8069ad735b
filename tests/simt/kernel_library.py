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
    return [BINDINGS, *sorted([*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")])]


def _state(flags: tuple[str, ...]) -> str:
    """Of everything that any of the sources may include, and of the tools."""
    state = hashlib.sha256(" ".join([sys.version, *flags]).encode())
    headers = [*(CSRC / "core").glob("*.h"), *(CSRC / "cuda").glob("*.h")]
    for file in sorted([*headers, *toolchain.INCLUDE.rglob("*.h")]):
        state.update(file.read_bytes())
    return state.hexdigest()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _compile(source: Path, target: Path, flags: list[str]) -> None:
    """Compiles one source where that was not done yet. Another process may do the same: whoever is
    last replaces an equal file."""
    if target.exists():
        return
    mine = target.with_suffix(f".{os.getpid()}.o")
    _run(toolchain.compile_command(*flags, "-x", "c++", "-c", source, "-o", mine))
    mine.replace(target)


def _flags(flags: tuple[str, ...], csrc: Path) -> list[str]:
    """How sources are compiled that include headers from ``csrc``."""
    import pybind11

    # 16-byte loads of arrays of smaller numbers are what the kernels are about.
    common = [*flags, "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DMARGIN_EXT_SIMT"]
    common.append(f"-I{csrc}")
    for include in (pybind11.get_include(), sysconfig.get_paths()["include"]):
        common += ["-isystem", include]
    return common


def build_changed(source: Path, csrc: Path, folder: Path) -> Path:
    """The library with a changed version of one source, which includes headers from ``csrc``."""
    changed = folder / f"{source.name}.o"
    _compile(source, changed, [*_flags(PLAIN, csrc), "-w"])
    others = [o for o in _objects(PLAIN) if not o.name.startswith(source.name)]
    library = folder / "margin_kernels.so"
    # The changed source comes first: of an inline function the linker takes the first version.
    _run(toolchain.compile_command("-shared", changed, *others, "-o", library, "-ldl"))
    return library


def _objects(flags: tuple[str, ...]) -> list[Path]:
    """The compiled sources; what is not there yet of them is compiled."""
    folder = ROOT / "build" / "simt"
    folder.mkdir(parents=True, exist_ok=True)
    common = _flags(flags, CSRC)
    state = _state(flags)
    objects = []
    for source in _sources():
        content = hashlib.sha256(state.encode() + source.read_bytes()).hexdigest()
        objects.append(folder / f"{source.name}-{content[:16]}.o")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, _sources(), objects, [common] * len(objects)))
    return objects


def build(flags: tuple[str, ...] = PLAIN) -> Path:
    """The library; what is not there yet of it is compiled."""
    folder, objects = ROOT / "build" / "simt", _objects(flags)
    whole = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()
    library = folder / f"margin_kernels-{whole[:16]}.so"
    if not library.exists():
        mine = library.with_suffix(f".{os.getpid()}.so")
        _run(toolchain.compile_command(*flags, "-shared", *objects, "-o", mine, "-ldl"))
        mine.replace(library)
    return library


def load(flags: tuple[str, ...] = PLAIN) -> Any:
    """The extension module; MARGIN_EXT_SIMT_LIBRARY names another library."""
    library = os.environ.get("MARGIN_EXT_SIMT_LIBRARY") or build(flags)
    spec = importlib.util.spec_from_file_location("margin_kernels", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
