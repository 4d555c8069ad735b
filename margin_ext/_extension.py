"""Loads the compiled libraries and knows which devices they serve.

Importing this module loads what lies in ``margin_ext/lib``. It compiles nothing and makes no CUDA
call, so a process may still fork after it. Without a CPU library there is one warning, and
everything runs on the pure PyTorch reference.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "BUILD_COMMAND",
    "INTERFACE_VERSION",
    "Library",
    "architecture_serves",
    "cpu_library",
    "cuda_library",
    "device_served",
    "ops_available",
    "require_ops",
]

# The number of the interface between these libraries and this package. Raise it with every change
# of an op's schema or meaning: a library built before the change is then refused, with words,
# instead of being called wrongly. CMake reads the number from this line.
INTERFACE_VERSION = 5

MANIFEST = "build.json"
LIBRARY_FOLDER = Path(__file__).resolve().parent / "lib"
_SOURCES = Path(__file__).resolve().parents[1]
# In a checkout the package next to the sources is the one that is imported, so the libraries have
# to be put there.
BUILD_COMMAND = (
    f"pip install -e {_SOURCES}"
    if (_SOURCES / "CMakeLists.txt").is_file()
    else "pip install --force-reinstall --no-deps . (in a clone of the sources)"
)


@dataclass
class Library:
    """One compiled library: where it lies, what it was built for, and why it is not in use.

    Attributes:
        name: ``cpu`` or ``cuda``.
        path: The file, if there is one.
        loaded: Whether its ops are registered with torch.
        problem: Why it is not loaded; empty where it is.
        build: What the build wrote down about it.
    """

    name: str
    path: Path | None = None
    loaded: bool = False
    problem: str = ""
    build: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether there is a library that cannot be used, as against none."""
        return self.path is not None and not self.loaded and bool(self.problem)


def architecture_serves(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for a CUDA architecture, in CMake's notation, runs on a device.

    Machine code runs within its generation, from its own minor version on; PTX on everything newer;
    code for architecture-specific features (``90a``) on that very device only.
    """
    number, _, kind = architecture.partition("-")
    specific = number.endswith("a")
    digits = number.rstrip("af")
    built = int(digits[:-1]), int(digits[-1])
    if specific:
        return built == capability
    within = built[0] == capability[0] and built[1] <= capability[1]
    portable = kind in ("", "virtual") and not number.endswith("f")
    return (within and kind != "virtual") or (portable and built <= capability)


def _read_manifest() -> dict[str, Any]:
    try:
        manifest = json.loads((LIBRARY_FOLDER / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _load(name: str, manifest: dict[str, Any]) -> Library:
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    path = LIBRARY_FOLDER / f"libmargin_ext_{name}{suffix}"
    library = Library(name, build=dict(manifest.get(name, {})))
    if not path.is_file():
        library.problem = library.build.get("skipped", "it has not been built")
        return library
    library.path = path
    built_for = manifest.get("interface")
    if built_for != INTERFACE_VERSION:
        library.problem = (
            f"it was built for interface {built_for} of the package, which is now at "
            f"{INTERFACE_VERSION}: the library is stale"
        )
        return library
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        library.problem = f"it cannot be loaded: {error}"
    else:
        library.loaded = True
    return library


def _load_cuda(manifest: dict[str, Any]) -> Library:
    if not cpu_library.loaded:
        return Library("cuda", problem="the CPU library, which declares the ops, is not loaded")
    if torch.version.cuda is None:
        # Its symbols of libtorch_cuda could not be found.
        return Library("cuda", problem="this torch is built without CUDA")
    return _load("cuda", manifest)


def device_served(capability: tuple[int, int]) -> bool:
    """Whether the CUDA library is in use and holds code for a device of this capability."""
    architectures = cuda_library.build.get("architectures", [])
    return cuda_library.loaded and any(
        architecture_serves(architecture, capability) for architecture in architectures
    )


def _warn_reference(device_type: str, why: str) -> None:
    warnings.warn(
        f"margin_ext runs on its PyTorch reference on {device_type}, which is several times slower "
        f"than its compiled ops: {why}. To build them: `{BUILD_COMMAND}`; "
        "`python -m margin_ext doctor` says more.",
        RuntimeWarning,
        stacklevel=3,
    )


def _check_cuda() -> bool:
    """Look at the CUDA library and the devices; only called when a CUDA tensor is at hand."""
    if not cuda_library.loaded:
        if cpu_library.loaded:  # otherwise the import has warned already
            _warn_reference("cuda", cuda_library.problem)
        return False
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    unserved = [
        f"{major}.{minor}" for major, minor in capabilities if not device_served((major, minor))
    ]
    if unserved:
        built = ", ".join(cuda_library.build.get("architectures", []))
        _warn_reference(
            "cuda",
            f"they were built for architectures {built}, and a visible device has compute "
            f"capability {', '.join(unserved)}",
        )
    return not unserved


def ops_available(device_type: str) -> bool:
    """Whether the compiled ops serve tensors on a type of device, ``"cpu"`` or ``"cuda"``.

    Where they do not serve ``"cuda"``, the first call says so in a warning.
    """
    if device_type not in _available:
        _available[device_type] = device_type == "cuda" and _check_cuda()
    return _available[device_type]


def require_ops(device_type: str) -> None:
    """Raise an error that says what is missing unless the compiled ops serve the device type."""
    if ops_available(device_type):
        return
    problem = {"cpu": cpu_library.problem, "cuda": cuda_library.problem}.get(
        device_type, "there are no ops for this type of device"
    )
    raise RuntimeError(
        f"margin_ext has no compiled ops for {device_type}: "
        f"{problem or 'no visible device is one they were built for'}. "
        f"To build them: `{BUILD_COMMAND}`."
    )


_manifest = _read_manifest()
cpu_library = _load("cpu", _manifest)
cuda_library = _load_cuda(_manifest)
_available = {"cpu": cpu_library.loaded}
if not cpu_library.loaded:
    _warn_reference("cpu", f"the CPU library is not in use, because {cpu_library.problem}")
