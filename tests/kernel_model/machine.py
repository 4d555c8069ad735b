"""Follows the machine code of a kernel as one warp executes it, and counts what the warp issues.

The thread that is followed is the first of its warp, and the other 31 are taken to be like it: a
shuffle returns the thread's own value. So control flow is that of the warp where it is uniform,
which it is in these kernels apart from single steps of one lane. What cannot be known (a value that
another warp would have stored) reads as zero. A branch on a value that is not known is counted in
``Trace.assumed``, and is not taken.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kernel_model.sass import Instruction, Kernel

__all__ = ["PARAMETER_BASE", "Launch", "Trace", "follow"]

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
# Where a kernel's parameters lie in constant bank 0, by architecture.
PARAMETER_BASE = {75: 0x160, 80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}
_LONGEST = 2_000_000  # instructions, after which something is wrong


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


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & M32))[0]


def _bits(x: float) -> int:
    try:
        return struct.unpack("<I", struct.pack("<f", x))[0]
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def _double(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits & M64))[0]


def _signed(x: int, bits: int = 32) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


class _Warp:
    """The state of the thread that is followed."""

    def __init__(self, kernel: Kernel, launch: Launch, memory: dict[int, int], shared: dict[int, int]):
        self.kernel, self.launch = kernel, launch
        self.memory, self.shared = memory, shared
        self.registers: dict[str, int | None] = {}
        self.predicates: dict[str, bool | None] = {}
        self.trace = Trace()
        self.bank = bytearray(PARAMETER_BASE[launch.architecture]) + launch.parameters
        self.bank += bytes(64)
        dims = (launch.threads, 1, 1, launch.blocks, 1, 1)
        struct.pack_into("<6I", self.bank, 0, *dims)
        if launch.architecture >= 100:
            struct.pack_into("<6I", self.bank, 0x360, *dims)
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
        text = text.split("(")[0].strip()
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
            return _bits(float(text))
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
        if found := re.match(r"(R\d+)\.(H[01])_H[01]$", text):
            bits = self.integer(text)
            return None if bits is None else struct.unpack("<e", struct.pack("<H", bits & 0xFFFF))[0]
        bits = self.integer(text)
        return None if bits is None else _float(bits)

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
            part = part.strip()
            value = self.integer(part)
            if value is not None and part.startswith("-"):
                value = _signed(value)
            total = None if value is None or total is None else total + value
        return total

    def load(self, where: int | None, size: int, shared: bool) -> int | None:
        if where is None:
            return None
        memory = self.shared if shared else self.memory
        if not shared and where not in memory:
            if where < 1 << 16:
                return None
            raw = ctypes.string_at(where, size)
            return int.from_bytes(raw, "little")
        return sum(memory.get(where + i, 0) << 8 * i for i in range(size))

    def store(self, where: int | None, value: int | None, size: int, shared: bool) -> None:
        if where is None or not shared:
            return
        for i in range(size):
            self.shared[where + i] = 0 if value is None else value >> 8 * i & 0xFF


def _size(instruction: Instruction) -> int:
    for suffix, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("16", 2), ("U8", 1), ("S8", 1), ("8", 1)):
        if suffix in instruction.suffixes:
            return size
    return 4


_COMPARE = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def _compare_reals(how: str, a: float, b: float) -> bool:
    unordered = math.isnan(a) or math.isnan(b)
    if how == "NAN":
        return unordered
    if how == "NUM":
        return not unordered
    if how.endswith("U") and how != "LTU"[:0]:
        return unordered or _COMPARE[how[:-1]](a, b)
    return not unordered and _COMPARE[how](a, b)


def _combine(how: tuple[str, ...], result: bool | None, other: bool | None) -> bool | None:
    if "OR" in how:
        if result is True or other is True:
            return True
        return None if result is None or other is None else False
    if "XOR" in how:
        return None if result is None or other is None else result != other
    if result is False or other is False:
        return False
    return None if result is None or other is None else True


def _lut(table: int, a: int, b: int, c: int) -> int:
    out = 0
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return out & M32


def _execute(warp: _Warp, i: Instruction) -> None:  # noqa: C901, PLR0911, PLR0912, PLR0915
    """Do what an instruction does to registers, predicates and shared memory."""
    name, suffixes, o = i.name, i.suffixes, i.operands
    n, r, put, p = warp.integer, warp.real, warp.put, warp.predicate
    known = lambda *values: all(value is not None for value in values)  # noqa: E731
    if name.startswith("U") and name not in ("UCGABAR_ARV", "UCGABAR_WAIT"):
        name = name[1:]
    if name in ("MOV", "R2UR", "S2R", "S2UR", "CS2R", "CS2UR", "MOVM"):
        if name in ("S2R", "S2UR", "CS2R"):
            special = o[1]
            values = {"SR_TID.X": 32 * warp.launch.warp, "SRZ": 0}
            put(o[0], values.get(special, 0), 8 if name == "CS2R" and "32" not in suffixes else 4)
        else:
            put(o[0], n(o[-1]))
    elif name in ("LDC", "LDCU"):
        size = _size(i)
        value = warp.constant(o[1], size)
        put(o[0], value, max(4, size))
    elif name in ("IADD3", "IADD", "VIADD"):
        outs = [x for x in o[1:] if re.match(r"U?P[0-9T]$", x)]
        ins = [x for x in o[1:] if not re.match(r"!?U?P[0-9T]$", x)]
        carries = [x for x in o[1:] if re.match(r"!?U?P[0-9T]$", x)]
        if "X" in suffixes:
            ncarry = [p(x) for x in carries[-2:]]
            ins_values = [n(x) for x in ins]
            if "64" in suffixes:
                pass
            total = None if not known(*ins_values, *ncarry) else sum(ins_values) + sum(map(int, ncarry))
            outs = carries[:-2]
        else:
            ins_values = [
                ((1 << 32) - n(x[1:]) & M32 if False else n(x)) if n(x) is not None else None for x in ins
            ]
            total = None if not known(*ins_values) else sum(ins_values)
        if "64" in suffixes and total is not None:
            values = [n(x, 8) for x in ins]
            total = None if not known(*values) else sum(values)
            put(o[0], None if total is None else total & M64, 8)
        else:
            put(o[0], None if total is None else total & M32)
        if outs:
            # A carry out of a sum with a negated register: -x is ~x + 1.
            warp.predicates[outs[0]] = None if total is None else _carry(warp, ins, carries, suffixes)
    elif name == "IMAD":
        _imad(warp, i)
    elif name == "LEA":
        _lea(warp, i)
    elif name == "LOP3":
        ins = [x for x in o if not re.match(r"!?U?P[0-9T]$", x)]
        values = [n(x) for x in ins[1:4]]
        table = n(ins[4])
        value = _lut(table, *values) if known(*values) else None
        if value is None and table == 0xC0 and 0 in values[:2]:
            value = 0
        put(ins[0], value)
        if re.match(r"U?P[0-9]$", o[0]):
            warp.predicates[o[0]] = None if value is None else value != 0
    elif name == "SHF":
        low, amount, high = n(o[1]), n(o[2]), n(o[3])
        if not known(amount) or (low is None and high is None):
            return put(o[0], None)
        low, high = low or 0, high or 0
        if "L" in suffixes:
            amount = min(amount, 63) if "W" not in suffixes else amount & 31
            joined = (high << 32 | low) << amount
            put(o[0], (joined >> 32 if "HI" in suffixes or "U64" in suffixes else low << amount) & M32)
        elif "HI" in suffixes and ("U32" in suffixes or "S32" in suffixes):
            value = _signed(high) if "S32" in suffixes else high
            put(o[0], value >> min(amount, 31 if "S32" in suffixes else 32) & M32)
        else:
            joined = high << 32 | low
            if "S64" in suffixes or "S32" in suffixes:
                joined = _signed(joined, 64)
            put(o[0], (joined >> min(amount, 63)) >> (32 if "HI" in suffixes else 0) & M32)
    elif name in ("SEL", "FSEL"):
        chosen = p(o[-1])
        if name == "FSEL":
            a, b = r(o[1]), r(o[2])
            value = None if chosen is None else (a if chosen else b)
            put(o[0], None if value is None else _bits(value))
        else:
            put(o[0], None if chosen is None else n(o[1] if chosen else o[2]), 8 if "64" in suffixes else 4)
    elif name == "ISETP":
        _isetp(warp, i)
    elif name in ("FSETP", "DSETP"):
        outs = o[:2]
        a, b = (r(o[2]), r(o[3])) if name == "FSETP" else (_wide(warp, o[2]), _wide(warp, o[3]))
        how = next(s for s in suffixes if s not in ("FTZ", "AND", "OR", "XOR"))
        result = _compare_reals(how, a, b) if known(a, b) else None
        warp.predicates[outs[0]] = _combine(suffixes, result, p(o[4]))
        if outs[1] != "PT":
            warp.predicates[outs[1]] = _combine(
                suffixes, None if result is None else not result, p(o[4])
            )
    elif name == "PLOP3":
        values = [p(x) for x in o[2:5]]
        for out, table in ((o[0], n(o[5])), (o[1], n(o[6]))):
            if out in ("PT", "UPT"):
                continue
            bits = set()
            for a in ([values[0]] if values[0] is not None else [False, True]):
                for b in ([values[1]] if values[1] is not None else [False, True]):
                    for c in ([values[2]] if values[2] is not None else [False, True]):
                        bits.add(bool(table >> (4 * a + 2 * b + c) & 1))
            warp.predicates[out] = bits.pop() if len(bits) == 1 else None
    elif name in ("FADD", "FMUL", "FFMA", "FMNMX", "FMNMX3"):
        values = [r(x) for x in o[1:4] if not re.match(r"!?PT?[0-9]?$", x)]
        if not known(*values):
            return put(o[0], None)
        if name == "FADD":
            result = values[0] + values[1]
        elif name == "FMUL":
            result = _times(values[0], values[1])
        elif name == "FFMA":
            result = _times(values[0], values[1]) + values[2]
        else:
            numbers = [v for v in values if not math.isnan(v)]
            smaller = p(o[-1])
            result = (min if smaller else max)(numbers) if numbers else math.nan
        put(o[0], _bits(result))
    elif name == "MUFU":
        x = r(o[1])
        if x is None or "RCP64H" in suffixes or "RSQ64H" in suffixes:
            return put(o[0], None)
        put(o[0], _bits(_special(suffixes[0], x)))
    elif name == "FCHK":
        warp.predicates[o[0]] = False
    elif name in ("I2F", "I2FP"):
        wide = "U64" in suffixes or "S64" in suffixes
        x = n(o[1], 8 if wide else 4)
        if x is not None and "F64" not in suffixes:
            x = x if any(s.startswith("U") for s in suffixes) else _signed(x, 64 if wide else 32)
            put(o[0], _bits(float(x)))
        else:
            put(o[0], None, 8 if "F64" in suffixes else 4)
    elif name == "F2I":
        x = r(o[1])
        put(o[0], None if x is None or math.isnan(x) or math.isinf(x) else int(x) & M32)
    elif name == "F2F":
        if "F64" in suffixes and suffixes.index("F64") == 0:
            x = r(o[1])
            put(o[0], None if x is None else struct.unpack("<Q", struct.pack("<d", x))[0], 8)
        else:
            x = _wide(warp, o[1])
            put(o[0], None if x is None else _bits(x))
    elif name in ("DADD", "DMUL", "DFMA"):
        values = [_wide(warp, x) for x in o[1:4]]
        if not known(*values):
            return put(o[0], None, 8)
        result = (
            values[0] + values[1]
            if name == "DADD"
            else _times(values[0], values[1]) + (values[2] if name == "DFMA" else 0)
        )
        put(o[0], struct.unpack("<Q", struct.pack("<d", result))[0], 8)
    elif name == "HADD2":
        if "F32" in suffixes:
            a, b = 0.0, r(o[2])
            put(o[0], None if b is None else _bits(a + b))
        else:
            put(o[0], None)
    elif name in ("F2FP", "HFMA2", "HMUL2", "HSETP2", "BREV", "FLO", "POPC"):
        if name == "HFMA2" and o[1].lstrip("-") == "RZ":
            # How ptxas loads two halves' worth of constant.
            a, b = (float(x) for x in o[3:5]) if len(o) > 4 else (0.0, 0.0)
            value = struct.unpack("<H", struct.pack("<e", a))[0] << 16
            value |= struct.unpack("<H", struct.pack("<e", b))[0]
            put(o[0], value)
        elif name == "POPC":
            x = n(o[-1])
            put(o[0], None if x is None else x.bit_count())
        elif name == "BREV":
            x = n(o[-1])
            put(o[0], None if x is None else int(f"{x:032b}"[::-1], 2))
        elif name == "FLO":
            x = n(o[-1])
            if x is None:
                return put(o[0], None)
            top = x.bit_length() - 1
            put(o[0], (31 - top if "SH" in suffixes else top) & M32)
        else:
            put(o[0], 0 if name == "F2FP" else None)
    elif name == "PRMT":
        a, selector, b = n(o[1]), n(o[2]), n(o[3])
        if not known(a, selector, b):
            return put(o[0], None)
        joined = b << 32 | a
        value = 0
        for k in range(4):
            nibble = selector >> 4 * k & 15
            byte = joined >> 8 * (nibble & 7) & 0xFF
            value |= ((0xFF if byte >> 7 else 0) if nibble & 8 else byte) << 8 * k
        put(o[0], value)
    elif name == "IABS":
        x = n(o[1])
        put(o[0], None if x is None else abs(_signed(x)))
    elif name in ("VIMNMX", "IMNMX", "VIADDMNMX"):
        values = [n(x) for x in o[1:-1]]
        smaller = p(o[-1])
        if not known(*values, smaller):
            return put(o[0], None)
        if "U32" not in suffixes:
            values = [_signed(x) for x in values]
        if name == "VIADDMNMX":
            values = [_signed(sum(values[:2]) & M32) if "U32" not in suffixes else sum(values[:2]) & M32, values[2]]
        put(o[0], (min if smaller else max)(values[:2]) & M32)
    elif name == "SHFL":
        put(o[1], n(o[2]))
        if o[0] != "PT":
            warp.predicates[o[0]] = True
    elif name in ("VOTE", "VOTEU"):
        outs = [x for x in o if re.match(r"U?R", x)]
        value = p(o[-1])
        put(outs[0] if outs else "RZ", None if value is None else (M32 if value else 0))
        if re.match(r"U?P[0-9]$", o[0]):
            warp.predicates[o[0]] = value
        elif len(o) > 1 and re.match(r"U?P[0-9]$", o[1]):
            warp.predicates[o[1]] = value
    elif name in ("REDUX", "CREDUX"):
        put(o[0], n(o[1]))
    elif name in ("LDG", "LD", "LDS"):
        size = _size(i)
        where = warp.address(o[-1])
        value = warp.load(where, size, name == "LDS") if name != "LD" else 0
        put(o[0] if not re.match(r"U?PT?", o[0]) else o[1], value, max(4, size))
        if name == "LDG" and size == 16:
            warp.trace.bytes_loaded += 16
    elif name in ("STG", "ST", "STS"):
        size = _size(i)
        warp.store(warp.address(o[0]), n(o[1], 8) if size == 8 else _words(warp, o[1], size), size, name == "STS")
        if name == "STG" and size == 16:
            warp.trace.bytes_stored += 16
    elif name == "LDGSTS":
        size = _size(i)
        to, start = warp.address(o[0]), warp.address(o[1])
        if len(o) < 3 or p(o[2]) is not False:
            warp.store(to, warp.load(start, size, False), size, True)
        warp.trace.bytes_loaded += 16 if size == 16 else 0
    elif name == "P2R":
        put(o[0], None)
    elif name in ("ATOMG", "ATOMS", "ATOM"):
        put(o[1], 0)
    elif name in _NO_EFFECT:
        pass
    else:
        warp.trace.unknown[i.name] += 1
        if o and re.match(r"U?R\d", o[0]):
            put(o[0], None)
    return None


_NO_EFFECT = {
    *("NOP", "BAR", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "ENDCOLLECTIVE", "MEMBAR", "ERRBAR", "CGAERRBAR"),
    *("CCTL", "UCGABAR_ARV", "UCGABAR_WAIT", "YIELD", "NANOSLEEP", "DEPBAR", "LDGDEPBAR", "ACQBULK"),
    *("SYNCS", "BMOV", "R2P", "WARPSYNC", "CGABAR_ARV", "CGABAR_WAIT", "BAR", "FENCE", "ELECT", "PREEXIT"),
}


def _words(warp: _Warp, name: str, size: int) -> int | None:
    if size <= 4:
        return warp.integer(name)
    low = warp.integer(name, 8)
    found = re.match(r"(U?R)(\d+)$", name)
    if found is None or low is None:
        return 0
    high = warp.integer(f"{found[1]}{int(found[2]) + 2}", 8)
    return None if high is None else high << 64 | low


def _times(a: float, b: float) -> float:
    try:
        return a * b
    except OverflowError:
        return math.inf


def _special(what: str, x: float) -> float:
    if what == "RCP":
        return math.copysign(math.inf, x) if x == 0 else 1 / x
    if what == "RSQ":
        return math.inf if x == 0 else (1 / math.sqrt(x) if x > 0 else math.nan)
    if what == "SQRT":
        return math.sqrt(x) if x >= 0 else math.nan
    if what == "EX2":
        return math.inf if x > 128 else 2.0**x
    if what == "LG2":
        return -math.inf if x == 0 else (math.log2(x) if x > 0 else math.nan)
    return math.nan


def _wide(warp: _Warp, text: str) -> float | None:
    if re.match(r"-?\d+(\.\d*)?$", text):
        return float(text)
    negated = text.startswith("-")
    bits = warp.integer(text.lstrip("-").strip("|"), 8)
    if bits is None or "INF" in text or "QNAN" in text:
        return None
    value = _double(bits)
    return -value if negated else abs(value) if "|" in text else value


def _addend(warp: _Warp, text: str) -> int | None:
    """A summand, with -x as ~x + 1 in 33 bits, so that the sum's bit 32 is the carry."""
    if text.startswith("-") and re.match(r"-U?R|-c\[", text):
        value = warp.integer(text[1:])
        return None if value is None else (~value & M32) + 1
    return warp.integer(text)


def _carry(warp: _Warp, ins: list[str], carries: list[str], suffixes: tuple[str, ...]) -> bool | None:
    values = [_addend(warp, x) for x in ins]
    if any(v is None for v in values):
        return None
    total = sum(v for v in values if v is not None)
    if "X" in suffixes:
        more = [warp.predicate(x) for x in carries[-2:]]
        if any(m is None for m in more):
            return None
        total += sum(bool(m) for m in more)
    return total >> 32 != 0


def _imad(warp: _Warp, i: Instruction) -> None:
    o, suffixes, put = i.operands, i.suffixes, warp.put
    ins = [x for x in o[1:] if not re.match(r"!?U?P[0-9T]$", x)]
    outs = [x for x in o[1:] if re.match(r"U?P[0-9]$", x)]
    unsigned = "U32" in suffixes
    if "WIDE" in suffixes or "HI" in suffixes:
        a, b = warp.integer(ins[0]), warp.integer(ins[1])
        c = warp.integer(ins[2], 8)
        if a is None or b is None or c is None:
            put(o[0], None, 8 if "WIDE" in suffixes else 4)
            return
        if not unsigned:
            a, b = _signed(a), _signed(b)
        total = a * b + c
        if "WIDE" in suffixes:
            put(o[0], total & M64, 8)
            if outs:
                warp.predicates[outs[0]] = total >> 64 != 0
        else:
            put(o[0], total >> 32 & M32)
        return
    values = [warp.integer(x) for x in ins]
    if len(values) > 2 and (values[0] == 0 or values[1] == 0):
        values[0] = values[1] = 0
    if any(v is None for v in values):
        put(o[0], None)
        return
    total = values[0] * values[1] + values[2]
    if "X" in suffixes:
        carry = warp.predicate(o[-1]) if re.match(r"!?U?P", o[-1]) else False
        total = None if carry is None else total + carry
    put(o[0], None if total is None else total & M32)


def _lea(warp: _Warp, i: Instruction) -> None:
    o, suffixes = i.operands, i.suffixes
    ins = [x for x in o[1:] if not re.match(r"!?U?P[0-9T]$", x)]
    predicates = [x for x in o[1:] if re.match(r"!?U?P[0-9T]$", x)]
    if "HI" in suffixes:
        a, b = warp.integer(ins[0]), warp.integer(ins[1])
        high = warp.integer(ins[2]) if len(ins) > 3 else 0
        shift = warp.integer(ins[-1])
        if "SX32" in suffixes and a is not None:
            high = M32 if a >> 31 else 0
        if a is None or b is None or high is None or shift is None:
            warp.put(o[0], None)
            return
        part = ((high << 32 | a) << shift) >> 32 & M32
        total = part + b
        if "X" in suffixes:
            carry = warp.predicate(predicates[-1])
            if carry is None:
                warp.put(o[0], None)
                return
            total += carry
    else:
        a, b, shift = warp.integer(ins[0]), warp.integer(ins[1]), warp.integer(ins[2])
        if a is None or b is None or shift is None:
            warp.put(o[0], None)
            return
        total = (a << shift & M32) + b
    warp.put(o[0], total & M32)
    outs = predicates[:-1] if "X" in suffixes else predicates
    if outs and not outs[0].startswith("!"):
        warp.predicates[outs[0]] = total >> 32 != 0


def _isetp(warp: _Warp, i: Instruction) -> None:
    o, suffixes = i.operands, i.suffixes
    how = suffixes[0]
    unsigned = "U32" in suffixes or "U64" in suffixes
    bits = 64 if "64" in suffixes or "U64" in suffixes else 32
    a, b = warp.integer(o[2], bits // 8), warp.integer(o[3], bits // 8)
    result: bool | None
    if "EX" in suffixes:
        lower = warp.predicate(o[-1])  # of the lower words
        if a is None or b is None:
            result = None
        else:
            x, y = (a, b) if unsigned else (_signed(a), _signed(b))
            if x != y and how not in ("EQ", "NE"):
                result = _COMPARE[how](x, y)
            elif how == "EQ":
                result = False if x != y else lower
            elif how == "NE":
                result = True if x != y else lower
            else:
                result = lower
        other = warp.predicate(o[-2])
    else:
        other = warp.predicate(o[-1])
        if a is None or b is None:
            result = None
        else:
            x, y = (a, b) if unsigned else (_signed(a, bits), _signed(b, bits))
            result = _COMPARE[how](x, y)
    if o[0] not in ("PT", "UPT"):
        first = _combine(suffixes, result, other)
    else:
        first = None
    second = _combine(suffixes, None if result is None else not result, other)
    if o[0] not in ("PT", "UPT"):
        warp.predicates[o[0]] = first
    if o[1] not in ("PT", "UPT"):
        warp.predicates[o[1]] = second


def follow(kernel: Kernel, launch: Launch, shared: dict[int, int] | None = None) -> Trace:
    """Return what a warp issues from the kernel's start to its end."""
    warp = _Warp(kernel, launch, {}, {} if shared is None else shared)
    trace = warp.trace
    at, steps, returns = 0, 0, []
    base = kernel.code[0].address
    while at < len(kernel.code):
        i = kernel.code[at]
        steps += 1
        if steps > _LONGEST:
            raise RuntimeError(f"{kernel.name}: no end after {_LONGEST} instructions")
        trace.issued[i.name] += 1
        trace.addresses[i.address] += 1
        taken = warp.predicate(i.predicate) if i.predicate else True
        at += 1
        if i.name in ("BRA", "BRX", "JMP", "EXIT", "CALL", "RET", "BRXU"):
            # BRA.DIV is taken where the warp has diverged.
            condition = taken if "DIV" not in i.suffixes else False
            for operand in i.operands:  # BRA has a second condition: BRA.U !UP0, `(label)
                if re.match(r"!?U?P[0-9T]$", operand) and i.name == "BRA":
                    condition = _combine(("AND",), condition, warp.predicate(operand))
            if condition is None:
                trace.assumed[i.address - base] += 1
                continue
            if not condition:
                continue
            if i.name == "EXIT":
                break
            if i.name == "RET":
                if not returns:
                    break
                at = returns.pop()
            elif i.name in ("BRX", "BRXU"):
                index = warp.integer(i.operands[0].split()[0])
                first = min(_table_offsets(kernel), default=0)
                number = 0 if index is None else (index - first) // 4
                at = kernel.labels[i.targets[number if 0 <= number < len(i.targets) else 0]]
            else:
                if i.name == "CALL":
                    returns.append(at)
                at = kernel.labels[i.targets[0]] if i.targets[0] in kernel.labels else at
        elif taken is not False:
            if taken is None:
                trace.assumed[i.address - base] += 1
            _execute(warp, i)
    return trace


def _table_offsets(kernel: Kernel) -> list[int]:
    return [
        int(found[1], 16)
        for i in kernel.code
        if i.name in ("LDC", "LDCU")
        for operand in i.operands
        if (found := re.search(r"c\[0x[24]\]\[U?R\d+\+?(0x[0-9a-f]+)?\]", operand)) and found[1]
    ]
