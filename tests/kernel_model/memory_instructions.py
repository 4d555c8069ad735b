"""Instructions that move values: between registers, memory, predicates and the lanes of a warp."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from kernel_model.predicates import is_output
from kernel_model.sass import Instruction
from kernel_model.warp import M32, Warp

__all__ = ["MEMORY_INSTRUCTIONS"]

_SIZES: Final = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}


def _size(instruction: Instruction) -> int:
    """The bytes that an access moves."""
    return next((size for name, size in _SIZES.items() if name in instruction.suffixes), 4)


def _move(warp: Warp, i: Instruction) -> None:
    warp.put(i.operands[0], warp.integer(i.operands[-1]))


def _special(warp: Warp, i: Instruction) -> None:
    """A special register, such as the number of the thread."""
    values = {"SR_TID.X": 32 * warp.launch.warp, "SRZ": 0}
    pair = i.name == "CS2R" and "32" not in i.suffixes
    warp.put(i.operands[0], values.get(i.operands[1], 0), 8 if pair else 4)


def _constant(warp: Warp, i: Instruction) -> None:
    size = _size(i)
    warp.put(i.operands[0], warp.constant(i.operands[1], size), max(4, size))


def _select(warp: Warp, i: Instruction) -> None:
    o, chosen = i.operands, warp.predicate(i.operands[-1])
    value = None if chosen is None else warp.integer(o[1] if chosen else o[2])
    warp.put(o[0], value, 8 if "64" in i.suffixes else 4)


def _load(warp: Warp, i: Instruction) -> None:
    o, size = i.operands, _size(i)
    kind = i.name
    value = warp.load(warp.address(o[-1]), size, kind == "LDS") if kind != "LD" else 0
    warp.put(o[1] if re.match(r"U?PT?", o[0]) else o[0], value, max(4, size))
    if kind == "LDG" and size == 16:
        warp.trace.bytes_loaded += 16


def _store(warp: Warp, i: Instruction) -> None:
    o, size = i.operands, _size(i)
    value = warp.integer(o[1], 8) if size == 8 else _words(warp, o[1], size)
    warp.store(warp.address(o[0]), value, size, i.name == "STS")
    if i.name == "STG" and size == 16:
        warp.trace.bytes_stored += 16


def _words(warp: Warp, name: str, size: int) -> int | None:
    if size <= 4:
        return warp.integer(name)
    low = warp.integer(name, 8)
    found = re.match(r"(U?R)(\d+)$", name)
    if found is None or low is None:
        return 0
    high = warp.integer(f"{found[1]}{int(found[2]) + 2}", 8)
    return None if high is None else high << 64 | low


def _copy(warp: Warp, i: Instruction) -> None:
    """From global to shared memory."""
    o, size = i.operands, _size(i)
    to, start = warp.address(o[0]), warp.address(o[1])
    if len(o) < 3 or warp.predicate(o[2]) is not False:
        warp.store(to, warp.load(start, size, False), size, True)
    warp.trace.bytes_loaded += 16 if size == 16 else 0


def _from_predicates(warp: Warp, i: Instruction) -> None:
    o = i.operands
    before, mask = warp.integer(o[2]), warp.integer(o[3])
    assert mask is not None, o
    saved = [warp.predicate(f"P{k}") if mask >> k & 1 else False for k in range(7)]
    bits = sum(bool(value) << k for k, value in enumerate(saved))
    known = before is not None and None not in saved
    warp.put(o[0], before & ~mask | bits if before is not None and known else None)


def _to_predicates(warp: Warp, i: Instruction) -> None:
    source, mask = warp.integer(i.operands[1]), warp.integer(i.operands[2])
    assert mask is not None, i.operands
    for k in range(7):
        if mask >> k & 1:
            warp.predicates[f"P{k}"] = None if source is None else bool(source >> k & 1)


def _shuffle(warp: Warp, i: Instruction) -> None:
    """All lanes are alike to the model: the thread gets its own value."""
    o = i.operands
    warp.put(o[1], warp.integer(o[2]))
    if o[0] != "PT":
        warp.predicates[o[0]] = True


def _vote(warp: Warp, i: Instruction) -> None:
    o, value = i.operands, warp.predicate(i.operands[-1])
    outs = [x for x in o if re.match(r"U?R", x)]
    warp.put(outs[0] if outs else "RZ", None if value is None else (M32 if value else 0))
    for name in o[:2]:
        if is_output(name):
            warp.predicates[name] = value
            break


def _reduce(warp: Warp, i: Instruction) -> None:
    warp.put(i.operands[0], warp.integer(i.operands[1]))


def _atomic(warp: Warp, i: Instruction) -> None:
    warp.put(i.operands[1], 0)


MEMORY_INSTRUCTIONS: Final[dict[str, Callable[[Warp, Instruction], None]]] = {
    **dict.fromkeys(("MOV", "R2UR", "CS2UR", "MOVM"), _move),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special),
    **dict.fromkeys(("LDC", "LDCU"), _constant),
    **dict.fromkeys(("LDG", "LD", "LDS"), _load),
    **dict.fromkeys(("STG", "ST", "STS"), _store),
    **dict.fromkeys(("VOTE", "VOTEU"), _vote),
    **dict.fromkeys(("REDUX", "CREDUX"), _reduce),
    **dict.fromkeys(("ATOMG", "ATOMS", "ATOM"), _atomic),
    "LDGSTS": _copy,
    "P2R": _from_predicates,
    "R2P": _to_predicates,
    "SEL": _select,
    "SHFL": _shuffle,
}
