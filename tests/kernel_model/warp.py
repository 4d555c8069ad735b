"""The state of the thread that is followed: registers, predicates, constants and shared memory."""

# ruff: noqa: C901, PLR0911
from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "M32",
    "M64",
    "PARAMETER_BASE",
    "Launch",
    "Trace",
    "Warp",
    "as_bits",
    "as_double",
    "signed",
]

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
# Below lies nothing of a process: an element of an array that starts at a null pointer.
_NULL = 1 << 22
# Where a kernel's parameters lie in constant bank 0, by architecture.
PARAMETER_BASE = {75: 0x160, 80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}


@dataclass(frozen=True)
class Launch:
    """A launch, as one of its warps sees it."""

    architecture: int
    parameters: bytes
    threads: int  # of a block
    blocks: int
    warp: int = 0
    cluster_size: int = 1


@dataclass
class Trace:
    """What a warp issued.

    Attributes:
        issued: Instructions, by name.
        bytes_loaded, bytes_stored: Of global memory, by a thread, in 16-byte accesses.
        assumed: Branches that depended on something unknown, by address.
        unknown: Instructions that are not understood, by name.
    """

    issued: Counter[str] = field(default_factory=Counter)
    addresses: Counter[int] = field(default_factory=Counter)
    bytes_loaded: int = 0
    bytes_stored: int = 0
    assumed: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Return the number of instructions that were issued."""
        return sum(self.issued.values())


def as_float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits & M32))[0])


def as_bits(x: float) -> int:
    try:
        return int.from_bytes(struct.pack("<f", x), "little")
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def as_double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits & M64))[0])


def signed(x: int, bits: int = 32) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


class Warp:
    """The state of the thread that is followed."""

    def __init__(self, launch: Launch, memory: dict[int, int], shared: dict[int, int]):
        self.launch = launch
        self.memory, self.shared = memory, shared
        self.registers: dict[str, int | None] = {}
        self.predicates: dict[str, bool | None] = {}
        self.trace = Trace()
        self.bank = bytearray(PARAMETER_BASE[launch.architecture]) + launch.parameters
        self.bank += bytes(64)
        dims = (launch.threads, 1, 1, launch.blocks, 1, 1)
        struct.pack_into("<6I", self.bank, 0, *dims)
        if launch.architecture >= 100:
            # Between both sizes: whether there are clusters, which sm_90 has at 0x140.
            struct.pack_into("<7I", self.bank, 0x360, *dims[:3], 1, *dims[3:])
        if launch.architecture == 90:
            struct.pack_into("<I", self.bank, 0x140, 1)

    # Operands -------------------------------------------------------------------------------------

    def predicate(self, text: str) -> bool | None:
        """The value of P0, !P0, PT, UP0 and so on."""
        negated, name = text.startswith("!"), text.lstrip("!")
        value = True if name in ("PT", "UPT") else self.predicates.get(name, False)
        return None if value is None else value != negated

    def constant(self, text: str, size: int = 4) -> int | None:
        found = re.match(r"c\[(\w+)\]\[([^\]]*)\]", text)
        assert found is not None, text
        offset: int | None = 0
        for part in found[2].replace("+-", "+ -").split("+"):
            value = self.integer(part.strip()) if part.strip() not in ("RZ", "URZ") else 0
            offset = None if value is None or offset is None else offset + value
        if offset is None:
            return None
        if int(found[1], 16) != 0:
            return offset & M32  # a jump table: its index stands for its content
        return int.from_bytes(self.bank[offset : offset + size], "little")

    def integer(self, text: str, size: int = 4) -> int | None:
        """The operand's bits; ``size`` 8 reads a pair of registers."""
        text = text.partition("(")[0].strip()
        if text.startswith("-") and not re.match(r"-(0x|\d|INF|QNAN|\.)", text):
            value = self.integer(text[1:], size)
            return None if value is None else -value & (M32 if size == 4 else M64)
        if text.startswith("~"):
            value = self.integer(text[1:], size)
            return None if value is None else ~value & (M32 if size == 4 else M64)
        if text.startswith("|"):
            return self.integer(text.strip("|"), size)
        if text in ("RZ", "URZ", "SRZ"):
            return 0
        if found := re.match(r"(U?R)(\d+)(?:\.(\w+))?$", text):
            name = found[1] + found[2]
            low = self.registers.get(name, 0)
            if size == 8 or found[3] == "64":
                high = self.registers.get(f"{found[1]}{int(found[2]) + 1}", 0)
                return None if low is None or high is None else (high << 32 | low) & M64
            if found[3] == "H1_H1" and low is not None:
                return low >> 16
            if found[3] == "H0_H0" and low is not None:
                return low & 0xFFFF
            return low
        if text.startswith("c["):
            return self.constant(text, size)
        if text in ("+INF", "INF"):
            return 0x7F800000
        if text == "-INF":
            return 0xFF800000
        if "QNAN" in text:
            return 0x7FC00000
        if re.match(r"-?0x[0-9a-f]+$", text):
            return int(text, 16) & (M32 if size == 4 else M64)
        if re.match(r"-?\d+$", text):
            return int(text) & M32
        if re.match(r"-?[\d.]+(e[-+]?\d+)?$", text):
            return as_bits(float(text))
        return None

    def real(self, text: str) -> float | None:
        """The operand as a float."""
        text = text.strip()
        if text.startswith("-") and not re.match(r"-(\d|INF|QNAN|\.)", text):
            value = self.real(text[1:])
            return None if value is None else -value
        if text.startswith("|"):
            value = self.real(text.strip("|"))
            return None if value is None else abs(value)
        if re.match(r"-?\d+(\.\d*)?(e[-+]?\d+)?$", text):
            return float(text)
        if re.match(r"(R\d+)\.(H[01])_H[01]$", text):
            bits = self.integer(text)
            return (
                None if bits is None else struct.unpack("<e", struct.pack("<H", bits & 0xFFFF))[0]
            )
        bits = self.integer(text)
        return None if bits is None else as_float(bits)

    def put(self, name: str, value: int | None, size: int = 4) -> None:
        found = re.match(r"(U?R)(\d+)", name)
        if found is None:
            return  # RZ, and predicates that are PT
        for word in range(size // 4):
            part = None if value is None else value >> 32 * word & M32
            self.registers[f"{found[1]}{int(found[2]) + word}"] = part

    # Memory ---------------------------------------------------------------------------------------

    def address(self, text: str) -> int | None:
        found = re.search(r"\[([^\]]*)\]$", text)
        if found is None:
            return None
        total: int | None = 0
        for part in found[1].replace("+-", "+ -").split("+"):
            value = self.integer(part.strip())
            if value is not None and part.strip().startswith("-"):
                value = signed(value)
            total = None if value is None or total is None else total + value
        return total

    def load(self, where: int | None, size: int, shared: bool) -> int | None:
        if where is None:
            return None
        memory = self.shared if shared else self.memory
        if not shared and where not in memory:
            if where < _NULL:
                return None
            return int.from_bytes(self._own_memory(where, size), "little")
        return sum(memory.get(where + i, 0) << 8 * i for i in range(size))

    @staticmethod
    def _own_memory(where: int, size: int) -> bytes:
        """Bytes of this process, where the launch's tensors are."""
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            try:
                memory.seek(where)
                return memory.read(size)
            except (OSError, OverflowError) as error:
                raise RuntimeError(f"the kernel reads {size} bytes at {where:#x}") from error

    def store(self, where: int | None, value: int | None, size: int, shared: bool) -> None:
        if where is None or not shared:
            return
        for i in range(size):
            self.shared[where + i] = 0 if value is None else value >> 8 * i & 0xFF
