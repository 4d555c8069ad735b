"""Predicates: what the names of predicate operands look like, and how conditions combine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kernel_model.sass import Instruction
from kernel_model.warp import Warp

__all__ = ["combine", "is_input", "is_output", "is_predicate", "plop3", "put_condition"]


def is_predicate(text: str) -> bool:
    """Whether an operand is a predicate: P0, PT, UP1, !P0."""
    return re.match(r"!?U?P[0-9T]$", text) is not None


def is_output(text: str) -> bool:
    """Whether an operand can be written as a predicate: P0, UP1."""
    return re.match(r"U?P[0-9]$", text) is not None


def is_input(text: str) -> bool:
    """Whether an operand is a number: a register, a constant or an immediate."""
    return not is_predicate(text)


def combine(how: Sequence[str], result: bool | None, other: bool | None) -> bool | None:
    """AND, OR or XOR of two conditions, either of which may be unknown."""
    if "OR" in how:
        if result is True or other is True:
            return True
        return None if result is None or other is None else False
    if "XOR" in how:
        return None if result is None or other is None else result != other
    if result is False or other is False:
        return False
    return None if result is None or other is None else True


def put_condition(warp: Warp, i: Instruction, result: bool | None, other: bool | None) -> None:
    """Write a comparison and its opposite, each combined with another predicate."""
    opposite = None if result is None else not result
    for name, value in zip(i.operands[:2], (result, opposite), strict=True):
        if name not in ("PT", "UPT"):
            warp.predicates[name] = combine(i.suffixes, value, other)


def plop3(warp: Warp, i: Instruction) -> None:
    """Two functions of three predicates, each given by its table."""
    o = i.operands
    choices = [[False, True] if value is None else [value] for value in map(warp.predicate, o[2:5])]
    for out, text in ((o[0], o[5]), (o[1], o[6])):
        if out in ("PT", "UPT"):
            continue
        table = warp.integer(text)
        assert table is not None, text
        found = {
            bool(table >> (4 * a + 2 * b + c) & 1)
            for a in choices[0]
            for b in choices[1]
            for c in choices[2]
        }
        warp.predicates[out] = found.pop() if len(found) == 1 else None
