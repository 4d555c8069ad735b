"""Builds the compiled libraries with CMake and Ninja; all metadata is in pyproject.toml.

torch is never imported here. pip runs this file in an isolated environment that has no torch, and
a torch installed there would not be the user's. So the interpreter is asked, with -I, which hides
what pip put before the environment's own packages, where its torch lies.

Environment (a variable that is empty or blank counts as not set):
    MARGIN_EXT_BUILD=on|off      off: no libraries, a pure Python package that runs on the reference
    MARGIN_EXT_CUDA=auto|on|off  whether to build the CUDA library
                                 (auto: where the environment's torch has CUDA and nvcc is found)
    MARGIN_EXT_LOCAL_VERSION     what stands after "+" in the version, such as "cuda"
    TORCH_CUDA_ARCH_LIST         CUDA architectures, in torch's notation
    CMAKE_ARGS                   further arguments for CMake
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import setuptools

# Told here, before an older one stumbles over the imports below or the licence in pyproject.toml.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(
        f"margin_ext needs setuptools >= 77, and this environment has {setuptools.__version__}: "
        "`pip install --upgrade setuptools`, then again"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info
from setuptools.errors import ExecError, PlatformError

ROOT = Path(__file__).resolve().parent
PACKAGE = "margin_ext"
OLDEST_TORCH = (2, 11)
CMAKE_REMEMBERS = (
    *("CMAKE_ARGS", "CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX"),
    *("CUDA_HOME", "CUDA_PATH"),
)
FIND_TORCH = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("torch")
found = spec is not None and spec.origin is not None
version = importlib.metadata.version("torch") if found else None
print(json.dumps({"origin": spec.origin if found else None, "version": version}))
"""


class Torch(NamedTuple):
    """The torch package that the libraries are built against."""

    folder: Path
    version: str


def variable(name: str) -> str:
    """Return an environment variable without blanks around it; empty where it is not set."""
    return os.environ.get(name, "").strip()


def switch(name: str, *others: str, default: str) -> str:
    """Return "on", "off" or one of ``others``, as an environment variable says."""
    words = dict.fromkeys(("on", "1", "true", "yes"), "on")
    words.update(dict.fromkeys(("off", "0", "false", "no"), "off"))
    words.update((other, other) for other in others)
    value = variable(name).lower() or default
    if value not in words:
        raise PlatformError(
            f"{name} must be {', '.join((*others, 'on'))} or off, and is {os.environ[name]!r}"
        )
    return words[value]


def libraries_wanted() -> bool:
    """Whether the compiled libraries are to be built."""
    return switch("MARGIN_EXT_BUILD", default="on") == "on"


def find_torch() -> Torch:
    """Ask the environment's own interpreter for its torch, and check its version."""
    answer = subprocess.run(
        [sys.executable, "-I", "-c", FIND_TORCH], capture_output=True, text=True, check=False
    )
    found = json.loads(answer.stdout) if answer.returncode == 0 else {"origin": None}
    if found["origin"] is None:
        raise PlatformError(
            "margin_ext needs torch >= 2.11 in this environment before it is built: "
            "`pip install torch`, then again; where the installer builds in an environment of its "
            "own (uv, build), add --no-build-isolation (with cmake, ninja and setuptools installed)"
        )
    version = str(found["version"])
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH:
        raise PlatformError(
            f"margin_ext needs torch >= 2.11, and this environment has {version}: "
            "`pip install --upgrade torch`, then again"
        )
    return Torch(Path(found["origin"]).parent, version)


def find_tool(name: str) -> str:
    """Return the path of cmake or ninja: the wheel that Python sees, or else what is on PATH.

    The wheel comes first because it is the one that pip brought for this build, or that the
    environment pinned; neither has to be on PATH.
    """
    folders = [os.environ.get("PATH", "")]
    if importlib.util.find_spec(name) is not None:
        wheel = importlib.import_module(name)
        folder = getattr(wheel, "CMAKE_BIN_DIR", None) or getattr(wheel, "BIN_DIR", None)
        folders = [str(folder), *folders] if folder else folders
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        raise ExecError(f"margin_ext needs {name} to build its libraries: `pip install {name}`")
    return path


def compiler_candidates() -> list[str]:
    """Return what may be the C++ compiler's program.

    CXX is read as CMake reads it: a path, which may hold spaces, or a program and its arguments.
    """
    chosen = variable("CXX")
    if not chosen:
        return ["c++", "g++", "clang++"]
    words = chosen.split(" ")
    return [" ".join(words[:count]) for count in range(len(words), 0, -1)]


def check_compiler() -> None:
    """Say early, and in one line, that no C++ compiler is there."""
    names = compiler_candidates()
    if not any(shutil.which(name) for name in names):
        tried = variable("CXX") or ", ".join(names)
        raise ExecError(
            f"margin_ext found no C++ compiler ({tried}): install one (apt install g++, "
            "xcode-select --install), or MARGIN_EXT_BUILD=off for a package without compiled "
            "kernels, which is slow"
        )


def build_folder(torch: Torch) -> Path:
    """Return the folder to build in; it is kept, so that only what has changed is compiled again.

    CMake remembers compilers and arguments that it was given once, so the folder is named by them:
    no build inherits another's.
    """
    remembered = [str(torch.folder), *map(variable, CMAKE_REMEMBERS)]
    key = hashlib.sha256(json.dumps(remembered).encode()).hexdigest()[:8]
    return ROOT / "build" / f"cmake-{key}"


class BuildLibraries(build_ext):
    """Runs CMake, and puts what it built into margin_ext/lib."""

    def run(self) -> None:
        """Configure, build and install."""
        torch = find_torch()
        check_compiler()
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        work = build_folder(torch)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(work), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DMARGIN_EXT_VERSION={self.distribution.get_version()}",
            f"-DMARGIN_EXT_TORCH_DIR={torch.folder}",
            f"-DMARGIN_EXT_TORCH_VERSION={torch.version}",
            f"-DMARGIN_EXT_CUDA={switch('MARGIN_EXT_CUDA', 'auto', default='auto')}",
            *shlex.split(variable("CMAKE_ARGS")),
        ]
        # What an earlier build left there would be packed too, built or not this time.
        shutil.rmtree(self.library_folder, ignore_errors=True)
        # CMake takes a blank CXX for the name of a compiler.
        environment = {name: value for name, value in os.environ.items() if value.strip()}
        for command in (
            configure,
            [cmake, "--build", str(work)],
            [cmake, "--install", str(work), "--prefix", str(self.library_folder)],
        ):
            self.announce(shlex.join(command), level=logging.INFO)
            done = subprocess.run(command, env=environment, check=False)
            if done.returncode:
                raise ExecError(
                    f"{Path(command[0]).name} failed with status {done.returncode}: what went "
                    "wrong stands above"
                )

    @property
    def library_folder(self) -> Path:
        """Where the libraries go: into the sources for an editable install."""
        in_place = self.inplace or self.editable_mode
        return (ROOT if in_place else Path(self.build_lib).resolve()) / PACKAGE / "lib"

    def get_outputs(self) -> list[str]:
        """Return the files that this command wrote."""
        return [str(path) for path in sorted(self.library_folder.glob("*"))]

    def get_output_mapping(self) -> dict[str, str]:
        """Return nothing: in an editable install the libraries already lie in the sources."""
        return {}

    def get_source_files(self) -> list[str]:
        """Return nothing: MANIFEST.in lists the sources."""
        return []


class TorchFirst(dist_info):
    """Metadata is asked for first: a missing torch is told here, before pip fetches anything."""

    def run(self) -> None:
        """Check for torch, then write the metadata."""
        if libraries_wanted():
            find_torch()
        super().run()


class AnyPythonWheel(bdist_wheel):
    """The libraries hold no Python symbols: one wheel serves every Python on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag, without a version of Python."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


local_version = variable("MARGIN_EXT_LOCAL_VERSION")

setup(
    options={"egg_info": {"tag_build": f"+{local_version}"}} if local_version else {},
    # CMake knows the sources; setuptools only has to know that there is something to build.
    ext_modules=[Extension(f"{PACKAGE}.lib", sources=[])] if libraries_wanted() else [],
    cmdclass={
        "build_ext": BuildLibraries,
        "dist_info": TorchFirst,
        "bdist_wheel": AnyPythonWheel,
    },
)
