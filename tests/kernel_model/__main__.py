"""Prints the model's table: ``PYTHONPATH=tests python -m kernel_model [H100 ...]``.

Where nvcc, its disassembler or the emulator's tools are missing, it says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backends.simt import missing

from kernel_model.code import nvcc
from kernel_model.devices import DEVICES
from kernel_model.sass import nvdisasm
from kernel_model.table import table

NAMES = [device.name for device in DEVICES]


def main(names: Sequence[str]) -> str:
    """Return the table for some devices, or why there is none."""
    if unknown := [name for name in names if name not in NAMES]:
        raise SystemExit(f"no such GPU: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    lacking = missing() or (nvcc() is None and "no nvcc") or (nvdisasm() is None and "no nvdisasm")
    if lacking:
        return f"The model of the kernels was not made: {lacking}"
    return table(devices=[device for device in DEVICES if not names or device.name in names])


sys.stdout.write(main(sys.argv[1:]) + "\n")
