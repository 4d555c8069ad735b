"""What was built for what, what this machine has, and what would mend a mismatch."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from margin_ext import _extension
from margin_ext._extension import BUILD_COMMAND, device_served

__all__ = ["BackendInfo", "Device", "Note", "backend_info"]

_OLDEST_TORCH = (2, 11)
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Device:
    """One CUDA device that torch sees.

    Attributes:
        index: Its number.
        name: Its name.
        capability: Its compute capability, as in ``"9.0"``.
        served: Whether the CUDA library holds code that runs on it.
    """

    index: int
    name: str
    capability: str
    served: bool


@dataclass(frozen=True)
class Note:
    """Something that is missing or broken.

    Attributes:
        what: The finding, in words.
        mend: The command, or the step, that mends it.
        needed: Whether compiled ops are lost by it that this machine could run.
    """

    what: str
    mend: str
    needed: bool


@dataclass(frozen=True)
class BackendInfo:
    """What margin_ext runs on here; ``str()`` of it is a report to read.

    Attributes:
        package_version: Version of margin_ext.
        python_version: Version of Python.
        torch_version: Version of torch.
        torch_cuda: The CUDA version that torch was built with, if any.
        cpu_library: Path of the CPU library in use, if any.
        cpu_instruction_sets: What its kernels were compiled for.
        cpu_instruction_set: Which of these this processor runs.
        compiler: What compiled it.
        cuda_library: Path of the CUDA library in use, if any.
        cuda_library_absent: Why there is none in use; empty where there is.
        cuda_architectures: What it was compiled for, in CMake's notation.
        nvcc: What compiled it.
        devices: The CUDA devices that torch sees.
        notes: What is missing or broken, and what mends it.
    """

    package_version: str
    python_version: str
    torch_version: str
    torch_cuda: str | None
    cpu_library: str | None
    cpu_instruction_sets: tuple[str, ...]
    cpu_instruction_set: str | None
    compiler: str | None
    cuda_library: str | None
    cuda_library_absent: str
    cuda_architectures: tuple[str, ...]
    nvcc: str | None
    devices: tuple[Device, ...]
    notes: tuple[Note, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is missing that this machine could make use of."""
        return not any(note.needed for note in self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {**asdict(self), "healthy": self.healthy}

    def __str__(self) -> str:
        cpu = self.cpu_library or "none: the PyTorch reference is used"
        cuda = self.cuda_library or f"none: {self.cuda_library_absent}"
        rows = [
            ("margin_ext", self.package_version),
            ("Python", self.python_version),
            ("torch", f"{self.torch_version}, CUDA {self.torch_cuda or 'not in this build'}"),
            ("CPU library", cpu),
        ]
        if self.cpu_library:
            built = ", ".join(self.cpu_instruction_sets) or "unknown"
            rows += [
                ("  kernels for", f"{built}; in use: {self.cpu_instruction_set or 'unknown'}"),
                ("  compiler", self.compiler or "unknown"),
            ]
        rows.append(("CUDA library", cuda))
        if self.cuda_library:
            rows += [
                ("  kernels for", ", ".join(self.cuda_architectures) or "unknown"),
                ("  compiler", f"nvcc {self.nvcc or 'unknown'}"),
            ]
        for device in self.devices:
            served = "served" if device.served else "NOT served"
            text = f"{device.name}, compute capability {device.capability}: {served}"
            rows.append((f"device {device.index}", text))
        if not self.devices:
            rows.append(("CUDA devices", "none"))
        lines = [f"{name:<15}{value}" for name, value in rows]
        for note in self.notes:
            mark = "broken " if note.needed else "note   "
            lines += ["", f"{mark}{note.what}", f"  mend {note.mend}"]
        return "\n".join(lines)


def _instruction_set() -> str | None:
    """Return what the CPU library chose on this processor; only the library itself knows.

    Raises:
        ValueError: MARGIN_EXT_INSTRUCTION_SET asks for what is not there.
    """
    told: dict[str, str] = json.loads(torch.ops.margin_ext.build_info())
    return told.get("cpu_instruction_set")


def _chosen_instruction_set() -> str | None:
    try:
        return _instruction_set()
    except ValueError:  # _cpu_notes tells of it
        return None


def _package_version() -> str:
    try:
        return importlib.metadata.version("margin_ext")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (run from its sources, not installed)"


def _devices() -> tuple[Device, ...]:
    if not torch.cuda.is_available():
        return ()
    devices = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        devices.append(Device(index, name, f"{major}.{minor}", device_served((major, minor))))
    return tuple(devices)


def _torch_notes() -> list[Note]:
    version = torch.__version__
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST_TORCH:
        what = f"torch {version} is older than 2.11, the oldest that the libraries run in"
        return [Note(what, "pip install --upgrade torch", needed=True)]
    if torch.version.cuda is None and _NVIDIA_DRIVER.exists():
        what = "this machine has an NVIDIA driver, and this torch is built without CUDA"
        return [Note(what, "install a CUDA build of torch", needed=False)]
    return []


def _cpu_notes() -> list[Note]:
    library = _extension.cpu_library
    if library.loaded:
        try:
            _instruction_set()
        except ValueError as error:
            return [Note(str(error), "unset MARGIN_EXT_INSTRUCTION_SET", needed=True)]
        return []
    if library.path is None and _left_out():
        what = "installed without compiled libraries (MARGIN_EXT_BUILD=off): plain PyTorch serves"
        return [Note(what, BUILD_COMMAND, needed=False)]
    what = f"the CPU library is not in use, because {library.problem}"
    return [Note(what, BUILD_COMMAND, needed=True)]


def _left_out() -> bool:
    """Whether the libraries were left out by choice: the wheel is pure Python then."""
    try:
        wheel = importlib.metadata.distribution("margin_ext").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return False
    return "Root-Is-Purelib: true" in wheel


def _cuda_notes(devices: tuple[Device, ...]) -> list[Note]:
    library = _extension.cuda_library
    if library.broken or (devices and not library.loaded):
        what = f"the CUDA library is not in use, because {library.problem}"
        mend = BUILD_COMMAND
        if not library.broken:
            mend += f" (with nvcc of CUDA {torch.version.cuda} on PATH, or CUDA_HOME set)"
        return [Note(what, mend, needed=True)]
    notes = []
    unserved = sorted({device.capability for device in devices if not device.served})
    if unserved:
        what = f"the CUDA library has no code for compute capability {', '.join(unserved)}"
        mend = f'TORCH_CUDA_ARCH_LIST="{";".join(unserved)}" {BUILD_COMMAND}'
        notes.append(Note(what, mend, needed=True))
    nvcc = str(library.build.get("nvcc", ""))
    ours, theirs = nvcc.partition(".")[0], (torch.version.cuda or "").partition(".")[0]
    if library.loaded and ours and ours != theirs:
        what = (
            f"the CUDA library was built with nvcc {nvcc}, torch with CUDA {torch.version.cuda}: "
            "a driver that serves torch may be too old for it"
        )
        mend = f"CUDACXX=NVCC_OF_CUDA_{theirs} {BUILD_COMMAND}"
        notes.append(Note(what, mend, needed=False))
    return notes


def backend_info() -> BackendInfo:
    """Tell what margin_ext runs on here, what is missing, and what would mend it.

    Where torch sees CUDA devices, their properties are asked for, which initialises CUDA.

    Example:
        >>> backend_info().torch_version == str(torch.__version__)
        True
    """
    devices = _devices()
    cpu, cuda = _extension.cpu_library, _extension.cuda_library
    return BackendInfo(
        package_version=_package_version(),
        python_version=platform.python_version(),
        torch_version=str(torch.__version__),
        torch_cuda=torch.version.cuda,
        cpu_library=str(cpu.path) if cpu.loaded else None,
        cpu_instruction_sets=tuple(cpu.build.get("instruction_sets", ())),
        cpu_instruction_set=_chosen_instruction_set() if cpu.loaded else None,
        compiler=cpu.build.get("compiler"),
        cuda_library=str(cuda.path) if cuda.loaded else None,
        cuda_library_absent=cuda.problem,
        cuda_architectures=tuple(cuda.build.get("architectures", ())),
        nvcc=cuda.build.get("nvcc"),
        devices=devices,
        notes=(*_torch_notes(), *_cpu_notes(), *_cuda_notes(devices)),
    )
