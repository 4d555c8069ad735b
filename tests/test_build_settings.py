"""What the build makes of its environment: compilers, switches, and flags that change results."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="needs the source folder of the package"
)


@pytest.fixture
def setup_functions(monkeypatch, capsys):
    """The functions of setup.py, which is run as one asks it for the version."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    return runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")


def executable(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("suffix", ["", " -O2", " -O2 -g"])
def test_a_compiler_in_a_folder_with_a_space(setup_functions, tmp_path, monkeypatch, suffix):
    compiler = executable(tmp_path / "my own tools" / "g++")
    monkeypatch.setenv("CXX", f"{compiler}{suffix}")
    setup_functions["check_compiler"]()


def test_a_compiler_behind_a_launcher(setup_functions, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(executable(tmp_path / "ccache").parent))
    monkeypatch.setenv("CXX", "ccache g++")
    setup_functions["check_compiler"]()


@pytest.mark.parametrize("name", ["no-such-compiler", "/no such folder/g++", "'"])
def test_a_compiler_that_is_not_there_is_named(setup_functions, monkeypatch, name):
    monkeypatch.setenv("CXX", name)
    with pytest.raises(Exception, match=r"found no C\+\+ compiler") as told:
        setup_functions["check_compiler"]()
    assert name in str(told.value)


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_blank_variables_are_not_set(setup_functions, monkeypatch, blank):
    for name in ("CXX", "MARGIN_EXT_CUDA", "MARGIN_EXT_BUILD"):
        monkeypatch.setenv(name, blank)
    assert "g++" in setup_functions["compiler_candidates"]()
    assert setup_functions["switch"]("MARGIN_EXT_CUDA", "auto", default="auto") == "auto"
    assert setup_functions["libraries_wanted"]()


@pytest.mark.parametrize(
    ("word", "meaning"), [("ON", "on"), ("1", "on"), ("False", "off"), (" no ", "off")]
)
def test_switches(setup_functions, monkeypatch, word, meaning):
    monkeypatch.setenv("MARGIN_EXT_CUDA", word)
    assert setup_functions["switch"]("MARGIN_EXT_CUDA", "auto", default="auto") == meaning


def test_a_switch_that_is_misspelt_is_refused(setup_functions, monkeypatch):
    monkeypatch.setenv("MARGIN_EXT_BUILD", "of")
    with pytest.raises(Exception, match="MARGIN_EXT_BUILD must be on or off, and is 'of'"):
        setup_functions["libraries_wanted"]()


PROJECT = """
cmake_minimum_required(VERSION 3.26)
project(flags LANGUAGES CXX)
list(APPEND CMAKE_MODULE_PATH "{folder}")
include(strict_math)
message(STATUS "FLAGS=<${{CMAKE_CXX_FLAGS}}> LINK=<${{CMAKE_SHARED_LINKER_FLAGS}}>")
"""


def configure(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cmake = pytest.importorskip("cmake")
    (folder / "CMakeLists.txt").write_text(PROJECT.format(folder=(ROOT / "cmake").as_posix()))
    program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
    return subprocess.run(
        [program, "-S", str(folder), "-B", str(folder / "build"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("-ffast-math", ""),
        ("-O2 -ffast-math -ffast-math -g", "-O2 -g"),
        ("-Ofast -march=native", "-O3 -march=native"),
        ("-funsafe-math-optimizations -ffinite-math-only -fno-signed-zeros", ""),
        ("-fno-fast-math -fno-math-errno", "-fno-fast-math -fno-math-errno"),
        ("-DNAME=-ffast-math", "-DNAME=-ffast-math"),
    ],
)
def test_fast_math_from_outside_is_left_out(tmp_path, given, used):
    done = configure(
        tmp_path, f"-DCMAKE_CXX_FLAGS={given}", "-DCMAKE_SHARED_LINKER_FLAGS=-ffast-math -Wl,-O1"
    )
    assert done.returncode == 0, done.stderr
    assert f"FLAGS=<{used}> LINK=<-Wl,-O1>" in done.stdout
    assert "is built without fast math" in done.stderr


def test_a_compiler_that_is_in_fast_math_is_refused(tmp_path):
    compiler = executable(tmp_path / "g++", 'exec c++ -ffast-math "$@"')
    done = configure(tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}")
    assert done.returncode != 0
    assert "cannot be built with fast math" in " ".join(done.stderr.split())
