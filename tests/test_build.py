"""What is packed: the wheel, the wheel without libraries, the source distribution and what is built
from it; and the advice that a build gives which cannot start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import margin_ext

ROOT = Path(__file__).resolve().parents[1]
VERSION = margin_ext.__version__
INFO = f"margin_ext-{VERSION}.dist-info/"

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="needs the source folder of the package"
)


def setup_py(*commands: str, python: str = sys.executable, **environment: str) -> str:
    """Run setup.py, as pip does in the end; return what it said, and fail if it failed."""
    done = try_setup_py(*commands, python=python, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def try_setup_py(
    *commands: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "setup.py", *commands],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build a wheel; only what CMake made is shared with the installed package."""
    setup_py(
        *("build", "--build-base", str(folder / "build")),
        *("egg_info", "--egg-base", str(folder)),
        *("bdist_wheel", "--dist-dir", str(folder / "dist")),
        **environment,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def python_files() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "margin_ext").rglob("*.py")}


def test_wheel(tmp_path):
    wheel = build_wheel(tmp_path)
    assert re.fullmatch(rf"margin_ext-{VERSION}-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        libraries = {
            name: archive.read(name) for name in names if name.startswith("margin_ext/lib")
        }
        scripts = archive.read(INFO + "entry_points.txt").decode()
        metadata = archive.read(INFO + "METADATA").decode()
    packed = {name for name in names if not name.startswith(INFO)}
    assert packed - set(libraries) == python_files() | {"margin_ext/py.typed"}
    kinds = {Path(name).name.partition(".")[0] for name in libraries}
    assert (
        {"build", "libmargin_ext_cpu"}
        <= kinds
        <= {
            "build",
            "libmargin_ext_cpu",
            "libmargin_ext_cuda",
        }
    )
    for name, content in libraries.items():
        assert str(ROOT).encode() not in content, f"{name} names the folder it was built in"
    assert "margin-ext = margin_ext.command_line:main" in scripts
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.11" in metadata
    assert INFO + "licenses/LICENSE" in names


def test_wheel_without_libraries(tmp_path):
    wheel = build_wheel(tmp_path, MARGIN_EXT_BUILD="off")
    assert wheel.name == f"margin_ext-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith(INFO)}
    assert packed == python_files() | {"margin_ext/py.typed"}


@pytest.mark.parametrize("build", ["on", "off"])
def test_source_distribution_is_complete(tmp_path, build):
    setup_py(
        *("egg_info", "--egg-base", str(tmp_path)),
        *("sdist", "--dist-dir", str(tmp_path)),
        MARGIN_EXT_BUILD=build,
    )
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"CMakeLists.txt", "LICENSE", "pyproject.toml", "setup.py", "margin_ext/py.typed"}
    for folder, pattern in (("csrc", "*.*"), ("cmake", "*.cmake"), ("margin_ext", "*.py")):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}
    wanted = {name for name in wanted if "__pycache__" not in name}
    if (ROOT / ".git").exists() and shutil.which("git"):
        wanted |= set(
            subprocess.run(
                ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.splitlines()
        )
    assert wanted - names == set()
    assert not [name for name in names if name.startswith(("build", ".venv", "margin_ext/lib"))]


LOAD = """
import json, sys, torch, margin_ext
from margin_ext._extension import cpu_library, _manifest
model, inputs = torch.nn.Linear(6, 3), torch.rand(4, 6, requires_grad=True)
loss = margin_ext.AverageMarginLoss()(model(inputs), torch.tensor([0, 1, 2, 0]), inputs)
loss.backward()
print(json.dumps({
    "file": margin_ext.__file__,
    "problem": cpu_library.problem,
    "manifest": _manifest,
    "trained": bool(model.weight.grad.isfinite().all()),
}))
"""


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_works_without_a_compiler(tmp_path):
    """The sources lie in a folder with a space; the wheel is used where no compiler is."""
    setup_py(*("egg_info", "--egg-base", str(tmp_path)), *("sdist", "--dist-dir", str(tmp_path)))
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "the sources", filter="data")
    (sources,) = (tmp_path / "the sources").iterdir()
    cuda = "auto" if torch.version.cuda is None else "off"
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path / "dist")],
        cwd=sources,
        env={**os.environ, "MARGIN_EXT_CUDA": cuda, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        # One file serves every Python: it must not ask for any of them.
        for name in archive.namelist():
            if name.endswith((".so", ".dylib")):
                assert not re.search(rb"\0_?Py[A-Z_]\w+\0", archive.read(name)), name
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(site)
    assert found["problem"] == ""
    assert found["trained"]
    assert found["manifest"]["version"] == VERSION
    why = (
        "the torch that it was built with has no CUDA" if cuda == "auto" else "MARGIN_EXT_CUDA=off"
    )
    assert why in found["manifest"]["cuda"]["skipped"]


def test_the_version_stands_in_one_place():
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", cited, re.MULTILINE)[1] == VERSION
    assert (
        re.search(r"^## .*?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
        == VERSION
    )
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


@pytest.fixture
def bare_python(tmp_path):
    """An environment without torch. What PYTHONPATH adds to it stands for pip's isolated build."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def build_tools() -> str:
    import setuptools

    return str(Path(setuptools.__file__).parents[1])


def metadata_error(python: str, folder: Path) -> str:
    done = try_setup_py(
        *("dist_info", "--output-dir", str(folder)), python=python, PYTHONPATH=build_tools()
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_missing_torch_is_told_before_anything_is_fetched(bare_python, tmp_path):
    advice = metadata_error(bare_python, tmp_path)
    assert "needs torch >= 2.11" in advice
    assert "pip install torch" in advice


def test_old_torch_is_told(bare_python, tmp_path):
    (site,) = (tmp_path / "bare" / "lib").glob("python*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").touch()
    (site / "torch-2.6.0.dist-info").mkdir()
    (site / "torch-2.6.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.6.0+cpu\n")
    advice = metadata_error(bare_python, tmp_path)
    assert "2.6.0+cpu" in advice
    assert "pip install --upgrade torch" in advice


def test_missing_compiler_is_told(tmp_path):
    done = try_setup_py("build", "--build-base", str(tmp_path), CXX="no-such-compiler")
    assert done.returncode != 0
    advice = done.stderr.strip().splitlines()[-1]
    assert "no-such-compiler" in advice
    assert "MARGIN_EXT_BUILD=off" in advice


TRANSLATE = """
list(APPEND CMAKE_MODULE_PATH "{folder}")
include(cuda_architectures)
margin_cuda_architectures(no-nvcc architectures)
message("${{architectures}}")
"""


@pytest.mark.parametrize(
    ("asked", "architectures"),
    [
        ("", "75-real;80-real;86-real;89-real;90-real;100-real;120"),
        ("9.0", "90-real"),
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.0 9.0a 10.0f+PTX", "80-real;90a-real;100f"),
        ("Ampere;Hopper+PTX", "80-real;86-real;90"),
        ("nonsense", None),
    ],
)
def test_cuda_architectures(tmp_path, asked, architectures):
    cmake = pytest.importorskip("cmake")
    script = tmp_path / "translate.cmake"
    script.write_text(TRANSLATE.format(folder=(ROOT / "cmake").as_posix()))
    done = subprocess.run(
        [str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), "-P", str(script)],
        env={**os.environ, "TORCH_CUDA_ARCH_LIST": asked},
        capture_output=True,
        text=True,
        check=False,
    )
    if architectures is None:
        assert done.returncode != 0
        assert "'nonsense' is not understood" in " ".join(done.stderr.split())
    else:
        assert done.stderr.strip() == architectures
