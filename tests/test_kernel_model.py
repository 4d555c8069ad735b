"""The machine code of the loss kernel keeps to its budgets, by count (tests/kernel_model).

nvcc compiles it for Hopper; no GPU is needed. Registers and spills on every architecture that is
built are the concern of test_cuda_compile.py.
"""

from __future__ import annotations

import re

import pytest
import torch
from backends.simt import missing
from kernel_model import model, sass
from kernel_model.machine import Launch, follow
from kernel_model.sass import Kernel
from simt.kernel_library import CSRC

H100 = model.DEVICES[0]

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or "the emulator is there"),
    pytest.mark.skipif(model.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(sass.nvdisasm() is None, reason="no nvdisasm"),
]


def limit(name: str) -> float:
    """A budget of csrc/cuda/policy.h."""
    found = re.search(rf" {name} = ([^;]+);", (CSRC / "cuda" / "policy.h").read_text())
    assert found is not None
    number, _, shift = found[1].partition("<<")
    return float(number) * 2 ** int(shift or 0)


def budget(shape: model.Shape) -> float:
    """The instructions for each byte that a shape may take."""
    if shape.dtype == torch.float32:
        # Per-channel factors cost a third more.
        return limit("kInstructionsPerByte") * (4 / 3 if shape.scaled else 1)
    return limit(f"kInstructionsPerByte{'Short' if shape.size < 3072 else ''}16Bit")


@pytest.mark.parametrize("shape", model.SHAPES, ids=str)
def test_instructions_and_bytes_in_flight(shape: model.Shape) -> None:
    counted = model.count(shape, H100)
    assert not counted.trace.unknown
    assert not counted.trace.assumed
    assert counted.per_byte <= budget(shape)
    assert counted.spilled == 0
    if shape.p == 2:
        # A short row in 16 bits is in flight as often as registers allow.
        assert counted.in_flight >= limit("kBytesInFlight")


def test_a_warp_reads_and_writes_its_row_once() -> None:
    """The count follows the whole row: 196 packs of 784 floats are 7 rounds of the first lane."""
    counted = model.count(model.SHAPES[0], H100)
    assert counted.variant == "warp"
    # Of three samples.
    assert counted.trace.bytes_loaded == 3 * 7 * 16
    assert counted.trace.bytes_stored == 3 * 7 * 16


# A loop of five additions, with a carry out of 32 bits and a branch on a predicate.
LOOP = """
        /*0000*/                   MOV R1, 0xfffffffe ;
        /*0010*/                   MOV R2, RZ ;
        /*0020*/                   MOV R3, RZ ;
.L_x_0:
        /*0030*/                   IADD3 R1, P0, R1, 0x1, RZ ;
        /*0040*/                   IADD3.X R2, R2, RZ, RZ, P0, !PT ;
        /*0050*/                   VIADD R3, R3, 0x1 ;
        /*0060*/                   ISETP.NE.AND P1, PT, R3, 0x5, PT ;
        /*0070*/              @P1  BRA `(.L_x_0) ;
        /*0080*/                   ISETP.EQ.AND P1, PT, R2, 0x1, PT ;
        /*0090*/             @!P1  BRA `(.L_x_1) ;
        /*00a0*/                   NOP ;
.L_x_1:
        /*00b0*/                   EXIT ;
"""


def test_the_follower_counts_a_loop() -> None:
    kernel: Kernel = sass.parse(f"\t.section\t.text.loop,\n.text.loop:\n{LOOP}")[0]
    trace = follow(kernel, Launch(90, b"", 32, 1))
    assert trace.issued["IADD3"] == 10
    assert trace.issued["BRA"] == 6
    assert trace.issued["NOP"] == 1  # the carry arrived
    assert trace.total == 3 + 25 + 4
    assert not trace.unknown
