"""What each instruction does to the thread that is followed.

Only what control flow and addresses of these kernels depend on is exact; the rest may end as an
unknown value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kernel_model.float_instructions import FLOAT_INSTRUCTIONS
from kernel_model.integer_instructions import INTEGER_INSTRUCTIONS
from kernel_model.memory_instructions import MEMORY_INSTRUCTIONS
from kernel_model.predicates import plop3
from kernel_model.sass import Instruction
from kernel_model.warp import Warp

__all__ = ["execute"]

_INSTRUCTIONS: Final[dict[str, Callable[[Warp, Instruction], None]]] = {
    **INTEGER_INSTRUCTIONS,
    **FLOAT_INSTRUCTIONS,
    **MEMORY_INSTRUCTIONS,
    "PLOP3": plop3,
}
# Barriers, hints and whatever else changes no value.
_NO_EFFECT: Final = {
    *("ACQBULK", "BAR", "BMOV", "BREAK", "BSSY", "BSYNC", "CCTL", "CGABAR_ARV", "CGABAR_WAIT"),
    *("CGAERRBAR", "DEPBAR", "ELECT", "ENDCOLLECTIVE", "ERRBAR", "FENCE", "LDGDEPBAR", "MEMBAR"),
    *("NANOSLEEP", "NOP", "PREEXIT", "SYNCS", "UCGABAR_ARV", "UCGABAR_WAIT", "WARPSYNC", "YIELD"),
}


def execute(warp: Warp, i: Instruction) -> None:
    """Do what an instruction does to registers, predicates and shared memory."""
    if i.name in _NO_EFFECT:
        return
    # Those on uniform registers have the same names after a U.
    name = i.name.removeprefix("U")
    if name in _INSTRUCTIONS:
        _INSTRUCTIONS[name](warp, replace(i, name=name))
    elif name not in _NO_EFFECT:
        warp.trace.unknown[i.name] += 1
        if i.operands and re.match(r"U?R\d", i.operands[0]):
            warp.put(i.operands[0], None)
