"""Instructions on integers and bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from kernel_model.predicates import is_input, is_output, is_predicate, put_condition
from kernel_model.sass import Instruction
from kernel_model.warp import M32, M64, Warp, signed

__all__ = ["COMPARE", "INTEGER_INSTRUCTIONS", "all_known"]

COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def all_known(values: Sequence[int | None]) -> list[int] | None:
    """The values, or None where one of them is unknown."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _iadd(warp: Warp, i: Instruction) -> None:
    """A sum, with a carry in and out."""
    o, extended = i.operands, "X" in i.suffixes
    ins = [x for x in o[1:] if is_input(x)]
    carries = [x for x in o[1:] if is_predicate(x)]
    outs = carries[:-2] if extended else [x for x in carries if not x.startswith("!")]
    size = 8 if "64" in i.suffixes else 4
    values = all_known([warp.integer(x) for x in ins])
    more = [warp.predicate(x) for x in carries[-2:]] if extended else []
    known = values is not None and None not in more
    total = sum(values or ()) + sum(map(bool, more)) if known else None
    if size == 8 and known:
        pairs = all_known([warp.integer(x, 8) for x in ins])
        total = None if pairs is None else sum(pairs)
    # Before the sum is put: it may go to one of the summands. Three of them may carry twice.
    carried = None if total is None or not outs else _carried(warp, ins, more)
    warp.put(o[0], None if total is None else total & (M64 if size == 8 else M32), size)
    for least, out in enumerate(outs, start=1):
        warp.predicates[out] = None if carried is None else carried >= least


def _addend(warp: Warp, text: str) -> int | None:
    """A summand for a carry: -x as ~x + 1 in 33 bits, so that the carry is the sum's bit 32."""
    if text.startswith("-") and re.match(r"-U?R|-c\[", text):
        value = warp.integer(text[1:])
        return None if value is None else (~value & M32) + 1
    return warp.integer(text)


def _carried(warp: Warp, ins: Sequence[str], more: Sequence[bool | None]) -> int | None:
    values = all_known([_addend(warp, x) for x in ins])
    if values is None or None in more:
        return None
    return (sum(values) + sum(map(bool, more))) >> 32


def _imad(warp: Warp, i: Instruction) -> None:
    if "WIDE" in i.suffixes or "HI" in i.suffixes:
        _wide_product(warp, i)
        return
    o = i.operands
    values = [warp.integer(x) for x in o[1:] if is_input(x)]
    if len(values) > 2 and (values[0] == 0 or values[1] == 0):
        values[:2] = 0, 0
    known = all_known(values)
    if known is None:
        warp.put(o[0], None)
        return
    carry: bool | None = False
    if "X" in i.suffixes and re.match(r"!?U?P", o[-1]):
        carry = warp.predicate(o[-1])
    total = None if carry is None else known[0] * known[1] + known[2] + carry
    warp.put(o[0], None if total is None else total & M32)


def _wide_product(warp: Warp, i: Instruction) -> None:
    o, wide = i.operands, "WIDE" in i.suffixes
    ins = [x for x in o[1:] if is_input(x)]
    outs = [x for x in o[1:] if is_output(x)]
    a, b, c = warp.integer(ins[0]), warp.integer(ins[1]), warp.integer(ins[2], 8)
    if a is None or b is None or c is None:
        warp.put(o[0], None, 8 if wide else 4)
        return
    if "U32" not in i.suffixes:
        a, b = signed(a), signed(b)
    total = a * b + c
    if not wide:
        warp.put(o[0], total >> 32 & M32)
        return
    warp.put(o[0], total & M64, 8)
    if outs:
        warp.predicates[outs[0]] = total >> 64 != 0


def _lea(warp: Warp, i: Instruction) -> None:
    o, suffixes = i.operands, i.suffixes
    ins = [x for x in o[1:] if is_input(x)]
    predicates = [x for x in o[1:] if is_predicate(x)]
    if "HI" in suffixes:
        a, b = warp.integer(ins[0]), warp.integer(ins[1])
        high = warp.integer(ins[2]) if len(ins) > 3 else 0
        shift = warp.integer(ins[-1])
        if "SX32" in suffixes and a is not None:
            high = M32 if a >> 31 else 0
        carry = warp.predicate(predicates[-1]) if "X" in suffixes else False
        if a is None or b is None or high is None or shift is None or carry is None:
            warp.put(o[0], None)
            return
        total = (((high << 32 | a) << shift) >> 32 & M32) + b + carry
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


def _lop3(warp: Warp, i: Instruction) -> None:
    """A function of three operands, bit by bit, given by its table."""
    o = i.operands
    ins = [x for x in o if is_input(x)]
    values, table = [warp.integer(x) for x in ins[1:4]], warp.integer(ins[4])
    known = all_known(values)
    value: int | None = None
    if known is not None and table is not None:
        a, b, c = known
        value = 0
        for k in range(8):
            if table >> k & 1:
                value |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        value &= M32
    elif table == 0xC0 and 0 in values[:2]:
        value = 0
    warp.put(ins[0], value)
    if is_output(o[0]):
        warp.predicates[o[0]] = None if value is None else value != 0


def _shf(warp: Warp, i: Instruction) -> None:
    """A shift of a pair of registers."""
    o, suffixes = i.operands, i.suffixes
    low, amount, high = (warp.integer(x) for x in o[1:4])
    if amount is None or (low is None and high is None):
        warp.put(o[0], None)
        return
    low, high = low or 0, high or 0
    joined = high << 32 | low
    if "L" in suffixes:
        amount = min(amount, 63) if "W" not in suffixes else amount & 31
        upper = "HI" in suffixes or "U64" in suffixes
        value = joined << amount >> 32 if upper else low << amount
    elif "HI" in suffixes and ("U32" in suffixes or "S32" in suffixes):
        value = signed(high) if "S32" in suffixes else high
        value >>= min(amount, 31 if "S32" in suffixes else 32)
    else:
        if "S64" in suffixes or "S32" in suffixes:
            joined = signed(joined, 64)
        value = (joined >> min(amount, 63)) >> (32 if "HI" in suffixes else 0)
    warp.put(o[0], value & M32)


def _isetp(warp: Warp, i: Instruction) -> None:
    o, suffixes = i.operands, i.suffixes
    how, extended = suffixes[0], "EX" in suffixes
    bits = 64 if "64" in suffixes or "U64" in suffixes else 32
    a, b = warp.integer(o[2], bits // 8), warp.integer(o[3], bits // 8)
    other = warp.predicate(o[-2 if extended else -1])
    result: bool | None = None
    if a is not None and b is not None:
        if "U32" not in suffixes and "U64" not in suffixes:
            a, b = signed(a, bits), signed(b, bits)
        if not extended or (a != b and how not in ("EQ", "NE")):
            result = COMPARE[how](a, b)
        elif a != b:
            result = how == "NE"
        else:  # the lower words decide
            result = warp.predicate(o[-1])
    put_condition(warp, i, result, other)


def _prmt(warp: Warp, i: Instruction) -> None:
    """Bytes of two registers in any order."""
    known = all_known([warp.integer(x) for x in i.operands[1:4]])
    value: int | None = None
    if known is not None:
        a, selector, b = known
        joined, value = b << 32 | a, 0
        for k in range(4):
            nibble = selector >> 4 * k & 15
            byte = joined >> 8 * (nibble & 7) & 0xFF
            value |= ((0xFF if byte >> 7 else 0) if nibble & 8 else byte) << 8 * k
    warp.put(i.operands[0], value)


def _minimum(warp: Warp, i: Instruction) -> None:
    """The smaller or larger of two numbers, the first of which may be a sum."""
    o, unsigned = i.operands, "U32" in i.suffixes
    values, smaller = all_known([warp.integer(x) for x in o[1:-1]]), warp.predicate(o[-1])
    if values is None or smaller is None:
        warp.put(o[0], None)
        return
    if i.name == "VIADDMNMX":
        values = [sum(values[:2]) & M32, values[2]]
    if not unsigned:
        values = [signed(x) for x in values]
    warp.put(o[0], (min if smaller else max)(values[:2]) & M32)


def _of_one(compute: Callable[[int, Instruction], int]) -> Callable[[Warp, Instruction], None]:
    """An instruction whose result depends on its last operand alone."""

    def run(warp: Warp, i: Instruction) -> None:
        x = warp.integer(i.operands[-1])
        warp.put(i.operands[0], None if x is None else compute(x, i))

    return run


def _highest_bit(x: int, i: Instruction) -> int:
    top = x.bit_length() - 1
    return (31 - top if "SH" in i.suffixes else top) & M32


INTEGER_INSTRUCTIONS: Final[dict[str, Callable[[Warp, Instruction], None]]] = {
    **dict.fromkeys(("IADD3", "IADD", "VIADD"), _iadd),
    **dict.fromkeys(("VIMNMX", "IMNMX", "VIADDMNMX"), _minimum),
    "BREV": _of_one(lambda x, _: int(f"{x:032b}"[::-1], 2)),
    "FLO": _of_one(_highest_bit),
    "IABS": _of_one(lambda x, _: abs(signed(x))),
    "IMAD": _imad,
    "ISETP": _isetp,
    "LEA": _lea,
    "LOP3": _lop3,
    "POPC": _of_one(lambda x, _: x.bit_count()),
    "PRMT": _prmt,
    "SHF": _shf,
}
