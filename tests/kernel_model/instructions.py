"""What each instruction does to the thread that is followed.

Only what control flow and addresses of these kernels depend on is exact; the rest may end as an
unknown value.
"""

# ruff: noqa: C901, PLR0911
from __future__ import annotations

import math
import re
import struct

from kernel_model.sass import Instruction
from kernel_model.warp import M32, M64, Warp, as_bits, as_double, signed

__all__ = ["combine", "execute"]


def _size(instruction: Instruction) -> int:
    for suffix, size in (
        ("128", 16),
        ("64", 8),
        ("U16", 2),
        ("S16", 2),
        ("16", 2),
        ("U8", 1),
        ("S8", 1),
        ("8", 1),
    ):
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


def combine(how: tuple[str, ...], result: bool | None, other: bool | None) -> bool | None:
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


def execute(warp: Warp, i: Instruction) -> None:
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
            total = (
                None if not known(*ins_values, *ncarry) else sum(ins_values) + sum(map(int, ncarry))
            )
            outs = carries[:-2]
        else:
            ins_values = [
                ((1 << 32) - n(x[1:]) & M32 if False else n(x)) if n(x) is not None else None
                for x in ins
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
            warp.predicates[outs[0]] = (
                None if total is None else _carry(warp, ins, carries, suffixes)
            )
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
            put(
                o[0],
                (joined >> 32 if "HI" in suffixes or "U64" in suffixes else low << amount) & M32,
            )
        elif "HI" in suffixes and ("U32" in suffixes or "S32" in suffixes):
            value = signed(high) if "S32" in suffixes else high
            put(o[0], value >> min(amount, 31 if "S32" in suffixes else 32) & M32)
        else:
            joined = high << 32 | low
            if "S64" in suffixes or "S32" in suffixes:
                joined = signed(joined, 64)
            put(o[0], (joined >> min(amount, 63)) >> (32 if "HI" in suffixes else 0) & M32)
    elif name in ("SEL", "FSEL"):
        chosen = p(o[-1])
        if name == "FSEL":
            a, b = r(o[1]), r(o[2])
            value = None if chosen is None else (a if chosen else b)
            put(o[0], None if value is None else as_bits(value))
        else:
            put(
                o[0],
                None if chosen is None else n(o[1] if chosen else o[2]),
                8 if "64" in suffixes else 4,
            )
    elif name == "ISETP":
        _isetp(warp, i)
    elif name in ("FSETP", "DSETP"):
        outs = o[:2]
        a, b = (r(o[2]), r(o[3])) if name == "FSETP" else (_wide(warp, o[2]), _wide(warp, o[3]))
        how = next(s for s in suffixes if s not in ("FTZ", "AND", "OR", "XOR"))
        result = _compare_reals(how, a, b) if known(a, b) else None
        warp.predicates[outs[0]] = combine(suffixes, result, p(o[4]))
        if outs[1] != "PT":
            warp.predicates[outs[1]] = combine(
                suffixes, None if result is None else not result, p(o[4])
            )
    elif name == "PLOP3":
        values = [p(x) for x in o[2:5]]
        for out, table in ((o[0], n(o[5])), (o[1], n(o[6]))):
            if out in ("PT", "UPT"):
                continue
            bits = set()
            for a in [values[0]] if values[0] is not None else [False, True]:
                for b in [values[1]] if values[1] is not None else [False, True]:
                    for c in [values[2]] if values[2] is not None else [False, True]:
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
        put(o[0], as_bits(result))
    elif name == "MUFU":
        x = r(o[1])
        if x is None or "RCP64H" in suffixes or "RSQ64H" in suffixes:
            return put(o[0], None)
        put(o[0], as_bits(_special(suffixes[0], x)))
    elif name == "FCHK":
        warp.predicates[o[0]] = False
    elif name in ("I2F", "I2FP"):
        wide = "U64" in suffixes or "S64" in suffixes
        x = n(o[1], 8 if wide else 4)
        if x is not None and "F64" not in suffixes:
            x = x if any(s.startswith("U") for s in suffixes) else signed(x, 64 if wide else 32)
            put(o[0], as_bits(float(x)))
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
            put(o[0], None if x is None else as_bits(x))
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
            put(o[0], None if b is None else as_bits(a + b))
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
        put(o[0], None if x is None else abs(signed(x)))
    elif name in ("VIMNMX", "IMNMX", "VIADDMNMX"):
        values = [n(x) for x in o[1:-1]]
        smaller = p(o[-1])
        if not known(*values, smaller):
            return put(o[0], None)
        if "U32" not in suffixes:
            values = [signed(x) for x in values]
        if name == "VIADDMNMX":
            values = [
                signed(sum(values[:2]) & M32) if "U32" not in suffixes else sum(values[:2]) & M32,
                values[2],
            ]
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
        warp.store(
            warp.address(o[0]),
            n(o[1], 8) if size == 8 else _words(warp, o[1], size),
            size,
            name == "STS",
        )
        if name == "STG" and size == 16:
            warp.trace.bytes_stored += 16
    elif name == "LDGSTS":
        size = _size(i)
        to, start = warp.address(o[0]), warp.address(o[1])
        if len(o) < 3 or p(o[2]) is not False:
            warp.store(to, warp.load(start, size, False), size, True)
        warp.trace.bytes_loaded += 16 if size == 16 else 0
    elif name == "P2R":
        before, mask = n(o[2]), n(o[3])
        saved = [p(f"P{k}") if mask >> k & 1 else False for k in range(7)]
        bits = sum(bool(value) << k for k, value in enumerate(saved))
        put(o[0], before & ~mask | bits if known(before, *saved) else None)
    elif name == "R2P":
        source, mask = n(o[1]), n(o[2])
        for k in range(7):
            if mask >> k & 1:
                warp.predicates[f"P{k}"] = None if source is None else bool(source >> k & 1)
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
    *(
        "NOP",
        "BAR",
        "BSSY",
        "BSYNC",
        "BREAK",
        "WARPSYNC",
        "ENDCOLLECTIVE",
        "MEMBAR",
        "ERRBAR",
        "CGAERRBAR",
    ),
    *(
        "CCTL",
        "UCGABAR_ARV",
        "UCGABAR_WAIT",
        "YIELD",
        "NANOSLEEP",
        "DEPBAR",
        "LDGDEPBAR",
        "ACQBULK",
    ),
    *(
        "SYNCS",
        "BMOV",
        "WARPSYNC",
        "CGABAR_ARV",
        "CGABAR_WAIT",
        "BAR",
        "FENCE",
        "ELECT",
        "PREEXIT",
    ),
}


def _words(warp: Warp, name: str, size: int) -> int | None:
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


def _wide(warp: Warp, text: str) -> float | None:
    if re.match(r"-?\d+(\.\d*)?$", text):
        return float(text)
    negated = text.startswith("-")
    bits = warp.integer(text.lstrip("-").strip("|"), 8)
    if bits is None or "INF" in text or "QNAN" in text:
        return None
    value = as_double(bits)
    return -value if negated else abs(value) if "|" in text else value


def _addend(warp: Warp, text: str) -> int | None:
    """A summand, with -x as ~x + 1 in 33 bits, so that the sum's bit 32 is the carry."""
    if text.startswith("-") and re.match(r"-U?R|-c\[", text):
        value = warp.integer(text[1:])
        return None if value is None else (~value & M32) + 1
    return warp.integer(text)


def _carry(
    warp: Warp, ins: list[str], carries: list[str], suffixes: tuple[str, ...]
) -> bool | None:
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


def _imad(warp: Warp, i: Instruction) -> None:
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
            a, b = signed(a), signed(b)
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


def _lea(warp: Warp, i: Instruction) -> None:
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


def _isetp(warp: Warp, i: Instruction) -> None:
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
            x, y = (a, b) if unsigned else (signed(a), signed(b))
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
            x, y = (a, b) if unsigned else (signed(a, bits), signed(b, bits))
            result = _COMPARE[how](x, y)
    first = combine(suffixes, result, other)
    second = combine(suffixes, None if result is None else not result, other)
    if o[0] not in ("PT", "UPT"):
        warp.predicates[o[0]] = first
    if o[1] not in ("PT", "UPT"):
        warp.predicates[o[1]] = second
