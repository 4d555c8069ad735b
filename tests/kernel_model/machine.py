"""Follows the machine code of a kernel as one warp executes it, and counts what the warp issues.

The thread that is followed is the first of its warp, and the other 31 are taken to be like it: a
shuffle returns the thread's own value. So control flow is that of the warp where it is uniform,
which it is in these kernels apart from single steps of one lane. What cannot be known (a value that
another warp would have stored) reads as zero. A branch on a value that is not known is counted in
``Trace.assumed``, and is not taken.
"""

# ruff: noqa: C901
from __future__ import annotations

import re

from kernel_model.instructions import execute
from kernel_model.predicates import combine
from kernel_model.sass import Kernel
from kernel_model.warp import PARAMETER_BASE, Launch, Trace, Warp

__all__ = ["PARAMETER_BASE", "Launch", "Trace", "follow"]

_LONGEST = 200_000  # instructions, after which something is wrong


def follow(kernel: Kernel, launch: Launch, shared: dict[int, int] | None = None) -> Trace:
    """Return what a warp issues from the kernel's start to its end."""
    warp = Warp(launch, {}, {} if shared is None else shared)
    trace = warp.trace
    at, steps = 0, 0
    returns: list[int] = []
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
                    condition = combine(("AND",), condition, warp.predicate(operand))
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
                at = kernel.labels.get(i.targets[0], at)
        elif taken is not False:
            if taken is None:
                trace.assumed[i.address - base] += 1
            execute(warp, i)
    return trace


def _table_offsets(kernel: Kernel) -> list[int]:
    return [
        int(found[1], 16)
        for i in kernel.code
        if i.name in ("LDC", "LDCU")
        for operand in i.operands
        if (found := re.search(r"c\[0x[24]\]\[U?R\d+\+?(0x[0-9a-f]+)?\]", operand)) and found[1]
    ]
