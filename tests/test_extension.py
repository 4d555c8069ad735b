"""Loading the libraries: what happens without them, with stale ones, and on import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import margin_ext
from margin_ext import _backend_info, _extension
from margin_ext._extension import Library, architecture_serves

PACKAGE = Path(margin_ext.__file__).parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

REPORT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import margin_ext
    from margin_ext._extension import cpu_library, ops_available, require_ops
    served = [ops_available("cpu"), ops_available("cuda"), ops_available("mps")]
import torch
try:
    require_ops("cpu")
    refusal = ""
except RuntimeError as error:
    refusal = str(error)
gap, _ = margin_ext.reference.logit_gap(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
from margin_ext.command_line import main
status = main(["doctor"])
json.dump({
    "file": margin_ext.__file__,
    "warnings": [str(warning.message) for warning in caught],
    "served": served,
    "problem": cpu_library.problem,
    "refusal": refusal,
    "gap": gap.tolist(),
    "doctor": status,
}, sys.stderr)
"""

NO_SIDE_EFFECTS = """
import os, subprocess, torch

def refuse(*args, **kwargs):
    raise AssertionError("importing margin_ext must not do this")

subprocess.Popen = os.system = os.fork = refuse
for name in ("_lazy_init", "init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, refuse)
before = set(torch.ops.loaded_libraries)
import margin_ext, margin_ext._extension
loaded = set(torch.ops.loaded_libraries) - before
assert loaded and all("margin_ext" in path for path in loaded), loaded
assert not torch.cuda.is_initialized()
"""


def run_python(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=path,
    )


def copy_package(site: Path) -> Path:
    """A copy of the package without its libraries; returns where they would lie."""
    ignored = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(PACKAGE, site / "margin_ext", ignore=ignored)
    return site / "margin_ext" / "lib"


def no_library(folder: Path) -> None:
    assert not folder.exists()


def stale_library(folder: Path) -> None:
    folder.mkdir()
    (folder / "build.json").write_text(json.dumps({"interface": 0, "cpu": {}}))
    (folder / f"libmargin_ext_cpu{SUFFIX}").write_bytes(b"from before")


def library_without_manifest(folder: Path) -> None:
    folder.mkdir()
    (folder / f"libmargin_ext_cpu{SUFFIX}").write_bytes(b"from somewhere")


def unreadable_library(folder: Path) -> None:
    folder.mkdir()
    manifest = {"interface": _extension.INTERFACE_VERSION, "cpu": {}}
    (folder / "build.json").write_text(json.dumps(manifest))
    (folder / f"libmargin_ext_cpu{SUFFIX}").write_bytes(b"not a library")


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (no_library, "has not been built"),
        (stale_library, "stale"),
        (library_without_manifest, "stale"),
        (unreadable_library, "cannot be loaded"),
    ],
)
def test_reference_without_a_usable_library(tmp_path, prepare, problem):
    prepare(copy_package(tmp_path))
    done = run_python(REPORT, path=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr)
    assert Path(report["file"]).is_relative_to(tmp_path)
    ours = [text for text in report["warnings"] if "margin_ext" in text]
    assert len(ours) == 1
    assert problem in ours[0]
    assert "pip install" in ours[0]
    assert report["served"] == [False, False, False]
    assert problem in report["problem"]
    assert problem in report["refusal"]
    assert "pip install" in report["refusal"]
    assert report["gap"] == [1.0]
    assert report["doctor"] == 1
    assert problem in done.stdout


def test_import_compiles_nothing_and_leaves_cuda_alone():
    done = run_python(NO_SIDE_EFFECTS)
    assert done.returncode == 0, done.stderr


def test_backend_info_of_this_build():
    info = _backend_info.backend_info()
    assert info.torch_version == torch.__version__
    assert info.cpu_library is not None
    assert Path(info.cpu_library).is_file()
    assert "baseline" in info.cpu_instruction_sets
    assert info.cpu_instruction_set in info.cpu_instruction_sets
    assert (info.cuda_library is not None) == _extension.cuda_library.loaded
    assert json.loads(json.dumps(info.as_dict()))["healthy"] == info.healthy
    text = str(info)
    assert info.cpu_library in text
    assert torch.__version__ in text


def test_ops_serve_the_cpu_and_no_unknown_device():
    assert _extension.ops_available("cpu")
    assert not _extension.ops_available("mps")
    _extension.require_ops("cpu")
    with pytest.raises(RuntimeError, match="no compiled ops for mps"):
        _extension.require_ops("mps")


@pytest.mark.parametrize(
    ("architecture", "capability", "serves"),
    [
        ("90-real", (9, 0), True),
        ("80-real", (8, 6), True),
        ("86-real", (8, 0), False),
        ("90-real", (10, 0), False),
        ("90", (10, 0), True),
        ("90", (12, 0), True),
        ("90", (8, 9), False),
        ("90-virtual", (9, 0), True),
        ("90a-real", (9, 0), True),
        ("90a", (10, 0), False),
        ("100f-real", (10, 3), True),
        ("100f", (12, 0), False),
        ("120", (7, 5), False),
    ],
)
def test_which_code_runs_on_which_device(architecture, capability, serves):
    assert architecture_serves(architecture, capability) is serves


@pytest.fixture
def machine(monkeypatch):
    """Make this look like a machine with given devices, torch's CUDA and CUDA library."""

    def pretend(capability: tuple[int, int], library: Library, torch_cuda: str = "13.0") -> None:
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a device")
        monkeypatch.setattr(_extension, "cuda_library", library)
        monkeypatch.setattr(_extension, "_available", {"cpu": True})

    return pretend


def built_library(*architectures: str, nvcc: str = "13.0.88") -> Library:
    build = {"architectures": list(architectures), "nvcc": nvcc}
    return Library("cuda", path=Path("library"), loaded=True, build=build)


def test_a_served_device(machine):
    machine((9, 0), built_library("80-real", "90"))
    assert _extension.ops_available("cuda")
    info = _backend_info.backend_info()
    assert info.devices[0].served
    assert info.healthy
    assert "a device, compute capability 9.0: served" in str(info)


def test_a_device_that_the_library_has_no_code_for(machine):
    machine((7, 0), built_library("80-real", "90"))
    with pytest.warns(RuntimeWarning, match=r"80-real, 90.* capability 7\.0"):
        assert not _extension.ops_available("cuda")
    assert not _extension.ops_available("cuda")  # told once
    info = _backend_info.backend_info()
    assert not info.healthy
    assert 'TORCH_CUDA_ARCH_LIST="7.0"' in info.notes[0].mend


def test_a_device_without_a_library(machine):
    machine((9, 0), Library("cuda", problem="nvcc was not found when it was built"))
    with pytest.warns(RuntimeWarning, match="nvcc was not found"):
        assert not _extension.ops_available("cuda")
    info = _backend_info.backend_info()
    assert not info.healthy
    assert "nvcc of CUDA 13.0" in info.notes[0].mend


def test_a_library_from_a_newer_toolkit_than_torch(machine):
    machine((9, 0), built_library("90", nvcc="13.0.88"), torch_cuda="12.6")
    info = _backend_info.backend_info()
    assert info.healthy
    assert "nvcc 13.0.88" in info.notes[0].what


@pytest.mark.parametrize("chosen", [True, False])
def test_libraries_that_were_left_out_by_choice_are_no_failure(
    monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    class Installed:
        def read_text(self, name: str) -> str:
            assert name == "WHEEL"
            return f"Wheel-Version: 1.0\nRoot-Is-Purelib: {str(chosen).lower()}\n"

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    monkeypatch.setattr(_extension, "cpu_library", _extension.Library("cpu", problem="absent"))
    (note, *_) = _backend_info._cpu_notes()
    assert note.needed is not chosen
    assert ("MARGIN_EXT_BUILD=off" in note.what) is chosen
