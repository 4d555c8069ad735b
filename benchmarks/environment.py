"""What a figure was measured on: hardware, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import margin_ext

ROOT = Path(__file__).resolve().parents[1]
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_PROCESSOR_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")


def describe(device: str) -> dict[str, Any]:
    """Everything a reader needs to judge a figure, as plain values."""
    backend = margin_ext.backend_info()
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "caches": caches(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "margin_ext": margin_ext.__version__,
        "cpu_library": backend.cpu_library is not None,
        "cpu_instruction_set": backend.cpu_instruction_set,
        "compiler": backend.compiler,
        "cuda_architectures": list(backend.cuda_architectures),
        "nvcc": backend.nvcc,
        "gpu": gpu() if device == "cuda" else None,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "margin_ext", "csrc")),
        "fingerprint": fingerprint(),
    }


def machine_kind(device: str) -> str:
    """A short name for file names: the GPU, or the processor and its cores."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{processor_name()} {usable_cores()} cores"
    )
    return slug(name)


def slug(name: str) -> str:
    """Lower case and hyphens: for file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def processor_name() -> str:
    if _PROCESSOR_INFO.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", _PROCESSOR_INFO.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on, which containers restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def caches() -> dict[str, str]:
    """Size of each data cache that the first core sees, as in {"L3": "32768K"}."""
    found = {}
    for index in sorted(_CPU_CACHES.glob("index*")):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction":
            level = (index / "level").read_text().strip()
            found[f"L{level}"] = (index / "size").read_text().strip()
    return found


def memory_bytes() -> int | None:
    if not _MEMORY_INFO.exists():
        return None
    match = re.search(r"^MemTotal:\s*(\d+) kB", _MEMORY_INFO.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "peak_bytes_per_s": _peak_bandwidth(properties),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _peak_bandwidth(properties: Any) -> float | None:
    """Twice the memory clock (double data rate) times the bus width, where torch tells them."""
    clock_khz = getattr(properties, "memory_clock_rate", None)
    width_bits = getattr(properties, "memory_bus_width", None)
    if not clock_khz or not width_bits:
        return None
    return float(2 * clock_khz * 1e3 * width_bits / 8)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.splitlines()[0].strip() if told.stdout else None


def fingerprint() -> str:
    """Hash of what was measured (package and libraries) and of what measured it.

    Results of an interrupted run are continued only where it is the same: a commit alone does not
    tell, since libraries are built from a working tree.
    """
    digest = hashlib.sha256(f"{torch.__version__} {processor_name()}".encode())
    package = Path(margin_ext.__file__).parent
    measured = [*package.rglob("*.py"), *package.glob("lib/*"), *Path(__file__).parent.glob("*.py")]
    for path in sorted(measured):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
