"""Instructions on floating-point numbers, and conversions."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Final

from kernel_model.integer_instructions import COMPARE
from kernel_model.predicates import put_condition
from kernel_model.sass import Instruction
from kernel_model.warp import M32, Warp, as_bits, as_double, signed

__all__ = ["FLOAT_INSTRUCTIONS"]


def _double_bits(x: float) -> int:
    return int.from_bytes(struct.pack("<d", x), "little")


def _half_bits(x: float) -> int:
    return int.from_bytes(struct.pack("<e", x), "little")


def _wide(warp: Warp, text: str) -> float | None:
    """The operand as a double."""
    if re.match(r"-?\d+(\.\d*)?$", text):
        return float(text)
    negated = text.startswith("-")
    bits = warp.integer(text.lstrip("-").strip("|"), 8)
    if bits is None or "INF" in text or "QNAN" in text:
        return None
    value = as_double(bits)
    return -value if negated else abs(value) if "|" in text else value


def _times(a: float, b: float) -> float:
    try:
        return a * b
    except OverflowError:
        return math.inf


def _compare_reals(how: str, a: float, b: float) -> bool:
    unordered = math.isnan(a) or math.isnan(b)
    if how == "NAN":
        return unordered
    if how == "NUM":
        return not unordered
    if how.endswith("U"):
        return unordered or COMPARE[how[:-1]](a, b)
    return not unordered and COMPARE[how](a, b)


def _setp(warp: Warp, i: Instruction) -> None:
    read = warp.real if i.name == "FSETP" else lambda text: _wide(warp, text)
    a, b = read(i.operands[2]), read(i.operands[3])
    how = next(s for s in i.suffixes if s not in ("FTZ", "AND", "OR", "XOR"))
    result = None if a is None or b is None else _compare_reals(how, a, b)
    put_condition(warp, i, result, warp.predicate(i.operands[4]))


def _arithmetic(warp: Warp, i: Instruction) -> None:
    o = i.operands
    found = [warp.real(x) for x in o[1:4] if not re.match(r"!?PT?[0-9]?$", x)]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        warp.put(o[0], None)
        return
    if i.name == "FADD":
        result = values[0] + values[1]
    elif i.name == "FMUL":
        result = _times(values[0], values[1])
    elif i.name == "FFMA":
        result = _times(values[0], values[1]) + values[2]
    else:
        numbers = [v for v in values if not math.isnan(v)]
        result = (min if warp.predicate(o[-1]) else max)(numbers) if numbers else math.nan
    warp.put(o[0], as_bits(result))


def _double_arithmetic(warp: Warp, i: Instruction) -> None:
    found = [_wide(warp, x) for x in i.operands[1:4]]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        warp.put(i.operands[0], None, 8)
        return
    if i.name == "DADD":
        result = values[0] + values[1]
    else:
        result = _times(values[0], values[1]) + (values[2] if i.name == "DFMA" else 0)
    warp.put(i.operands[0], _double_bits(result), 8)


def _mufu(warp: Warp, i: Instruction) -> None:
    """A reciprocal, root, power or logarithm."""
    x, part = warp.real(i.operands[1]), {"RCP64H", "RSQ64H"} & {*i.suffixes}
    warp.put(i.operands[0], None if x is None or part else as_bits(_special(i.suffixes[0], x)))


def _special(what: str, x: float) -> float:
    if what == "RCP":
        return math.copysign(math.inf, x) if x == 0 else 1 / x
    if what == "EX2":
        return math.inf if x > 128 else float(2.0**x)
    if x == 0:
        return {"LG2": -math.inf, "RSQ": math.inf, "SQRT": 0.0}.get(what, math.nan)
    if x < 0 or math.isnan(x):
        return math.nan
    if what == "LG2":
        return math.log2(x)
    root = math.sqrt(x)
    return {"RSQ": 1 / root, "SQRT": root}.get(what, math.nan)


def _fchk(warp: Warp, i: Instruction) -> None:
    """Whether a division needs the slow way."""
    warp.predicates[i.operands[0]] = False


def _from_integer(warp: Warp, i: Instruction) -> None:
    wide = "U64" in i.suffixes or "S64" in i.suffixes
    x = warp.integer(i.operands[1], 8 if wide else 4)
    if x is None or "F64" in i.suffixes:
        warp.put(i.operands[0], None, 8 if "F64" in i.suffixes else 4)
        return
    if not any(s.startswith("U") for s in i.suffixes):
        x = signed(x, 64 if wide else 32)
    warp.put(i.operands[0], as_bits(float(x)))


def _to_integer(warp: Warp, i: Instruction) -> None:
    x = warp.real(i.operands[1])
    warp.put(i.operands[0], None if x is None or not math.isfinite(x) else int(x) & M32)


def _between_floats(warp: Warp, i: Instruction) -> None:
    to, text = i.operands[:2]
    if i.suffixes[:1] == ("F64",):
        x = warp.real(text)
        warp.put(to, None if x is None else _double_bits(x), 8)
    else:
        x = _wide(warp, text)
        warp.put(to, None if x is None else as_bits(x))


def _hadd2(warp: Warp, i: Instruction) -> None:
    x = warp.real(i.operands[2]) if "F32" in i.suffixes else None
    warp.put(i.operands[0], None if x is None else as_bits(x))


def _hfma2(warp: Warp, i: Instruction) -> None:
    o = i.operands
    if o[1].lstrip("-") != "RZ":
        warp.put(o[0], None)
        return
    # How ptxas loads two halves' worth of constant.
    a, b = (float(x) for x in o[3:5]) if len(o) > 4 else (0.0, 0.0)
    warp.put(o[0], _half_bits(a) << 16 | _half_bits(b))


def _fsel(warp: Warp, i: Instruction) -> None:
    o, chosen = i.operands, warp.predicate(i.operands[-1])
    value = None if chosen is None else warp.real(o[1] if chosen else o[2])
    warp.put(o[0], None if value is None else as_bits(value))


FLOAT_INSTRUCTIONS: Final[dict[str, Callable[[Warp, Instruction], None]]] = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "FMNMX", "FMNMX3"), _arithmetic),
    **dict.fromkeys(("DADD", "DMUL", "DFMA"), _double_arithmetic),
    **dict.fromkeys(("FSETP", "DSETP"), _setp),
    **dict.fromkeys(("I2F", "I2FP"), _from_integer),
    **dict.fromkeys(("HMUL2", "HSETP2"), lambda warp, i: warp.put(i.operands[0], None)),
    "F2F": _between_floats,
    "F2FP": lambda warp, i: warp.put(i.operands[0], 0),
    "F2I": _to_integer,
    "FCHK": _fchk,
    "FSEL": _fsel,
    "HADD2": _hadd2,
    "HFMA2": _hfma2,
    "MUFU": _mufu,
}
