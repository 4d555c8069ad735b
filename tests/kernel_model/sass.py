"""Reads the machine code (SASS) of kernels: instructions, labels and the targets of branches."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Instruction", "Kernel", "disassemble", "nvdisasm", "parse"]


@dataclass(frozen=True)
class Instruction:
    """One instruction, such as ``@!P0 LDG.E.128 R4, desc[UR8][R2.64]``."""

    address: int
    predicate: str  # "P0", "!P0", or empty
    name: str  # "LDG"
    suffixes: tuple[str, ...]  # ("E", "128")
    operands: tuple[str, ...]
    targets: tuple[str, ...]  # the labels that it may jump to


@dataclass
class Kernel:
    """The code of one kernel.

    Attributes:
        name: The mangled name.
        code: Its instructions in order.
        labels: The index of the instruction that each label stands before.
    """

    name: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def nvdisasm() -> str | None:
    """Return the disassembler: of PyPI's nvidia-cuda-nvdisasm, or of the CUDA toolkit."""
    packaged = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm"))
    return str(packaged[0]) if packaged else shutil.which("nvdisasm")


_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
_LABEL = re.compile(r"^(\S+):\s*$")
_TARGET = re.compile(r"`\(([^)]*)\)")


def _operands(text: str) -> tuple[str, ...]:
    parts = re.split(r",\s*(?![^(\[]*[)\]])", text) if text else []
    return tuple(part.replace(".reuse", "").strip() for part in parts)


def disassemble(cubin: Path) -> list[Kernel]:
    """Return the kernels of a cubin."""
    tool = nvdisasm()
    if tool is None:
        raise FileNotFoundError("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    done = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(text: str) -> list[Kernel]:
    """Return the kernels in the text of a disassembly."""
    kernels: dict[str, Kernel] = {}
    kernel = Kernel("")
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            kernel = kernels.setdefault(section[1], Kernel(section[1]))
        elif found := _LINE.match(line):
            name, *suffixes = found[3].split(".")
            rest = found[4]
            targets = tuple(_TARGET.findall(rest))
            if listed := re.search(r"BRANCH_TARGETS ([^\"]*)", rest):
                targets = tuple(listed[1].split(","))
            rest = re.sub(r"\(\*.*?\*\)", "", rest)
            kernel.code.append(
                Instruction(
                    int(found[1], 16),
                    found[2] or "",
                    name,
                    tuple(suffixes),
                    _operands(rest),
                    targets,
                )
            )
        elif found := _LABEL.match(line):
            kernel.labels[found[1]] = len(kernel.code)
    return [kernel for kernel in kernels.values() if kernel.code]
