"""The machine code of the kernels keeps to its budgets, by count (tests/kernel_model).

nvcc compiles it for Hopper; no GPU is needed. The model's table, for A100 and B200 too, is printed
by ``python -m kernel_model``. Registers and spills on every architecture that is built are the
concern of test_cuda_compile.py.
"""

from __future__ import annotations

import re

import pytest
import torch
from backends.simt import missing
from kernel_model import code, sass
from kernel_model.cases import CASES, AttackStep, Case, ClassMargins, LogitGap, Loss
from kernel_model.devices import DEVICES
from kernel_model.machine import Launch, follow
from kernel_model.model import count
from kernel_model.sass import Kernel
from simt.kernel_library import CSRC

H100 = DEVICES[0]

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or "the emulator is there"),
    pytest.mark.skipif(code.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(sass.nvdisasm() is None, reason="no nvdisasm"),
]


def limit(name: str) -> float:
    """A budget of csrc/cuda/policy.h."""
    found = re.search(rf" {name} = ([^;]+);", (CSRC / "cuda" / "policy.h").read_text())
    assert found is not None
    number, _, shift = found[1].partition("<<")
    return float(number) * 2 ** int(shift or 0)


def budget(case: Case) -> float:
    """The instructions for each byte that a case may take."""
    bits = "" if case.dtype == torch.float32 else "16Bit"
    kind = ""
    if isinstance(case, AttackStep):
        if case.steepest > 1:
            kind = "AttackSteepest"
        elif case.p == 1:
            kind = "AttackOne"
        else:
            kind = "Attack" if bits else ""
    elif isinstance(case, ClassMargins):
        kind = "Classes"
    elif isinstance(case, Loss) and case.size < 3072:
        kind = "ShortAdditive" if case.additive else "Short" if bits else ""
    # Per-channel factors cost a third more.
    return limit(f"kInstructionsPerByte{kind}{bits}") * (4 / 3 if case.scaled else 1)


def fills_the_device(case: Case) -> bool:
    """Whether a case has enough long reads to hide their latency, and keeps them in flight."""
    if case.p == 1 and not isinstance(case, AttackStep):
        return False  # the row goes through registers
    if isinstance(case, Loss):
        return case.p == 2
    # Short rows of few samples are over before they could fill it.
    return isinstance(case, AttackStep)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not isinstance(case, LogitGap)], ids=lambda c: f"{c.op} {c}"
)
def test_instructions_and_bytes_in_flight(case: Case) -> None:
    counted = count(case, H100)
    assert not counted.trace.unknown
    assert not counted.trace.assumed
    assert counted.launches == 1
    assert counted.per_byte <= budget(case)
    assert counted.spilled == 0
    if fills_the_device(case):
        # A short row in 16 bits is in flight as often as registers allow.
        assert counted.in_flight >= limit("kBytesInFlight")


def test_calls_allocate_outputs_and_little_else() -> None:
    """The loss: five vectors, two gradients and the blocks' totals."""
    allocated = {case.op: count(case, H100).allocations for case in CASES if case.size == 3072}
    assert allocated == {
        "average_margin_loss": 8,
        "attack_step": 1,
        "class_margins": 3,
        "first_order_margin": 2,
        "dual_direction": 1,
        "scale_gradients_": 0,
    }


def test_a_warp_reads_and_writes_its_row_once() -> None:
    """The count follows the whole row: 196 packs of 784 floats are 7 rounds of the first lane."""
    counted = count(CASES[0], H100)
    assert counted.variant == "warp"
    # Of three samples.
    assert counted.trace.bytes_loaded == 3 * 7 * 16
    assert counted.trace.bytes_stored == 3 * 7 * 16


def test_a_step_reads_its_rows_in_three_passes() -> None:
    """The gradient for its norm; all three rows for the ball, and again for the result."""
    counted = count(AttackStep(batch=4096, size=784), H100)
    assert counted.trace.bytes_loaded == 3 * 7 * 7 * 16
    assert counted.trace.bytes_stored == 3 * 7 * 16


def test_margins_to_all_classes_read_every_row_once() -> None:
    """Of ten classes the first of five warps has two; so much for each of two samples."""
    counted = count(ClassMargins(batch=512, size=784, norms=(1.0, 2.0, float("inf"))), H100)
    assert counted.trace.bytes_loaded == 2 * 2 * 7 * 16


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


# A carry of three summands, and one into the register of a summand.
CARRIES = """
        /*0000*/                   MOV R1, 0xffffffff ;
        /*0010*/                   IADD3 R2, P0, P1, R1, R1, R1 ;
        /*0020*/                   IADD3.X R3, RZ, RZ, RZ, P0, P1 ;
        /*0030*/                   IADD3 R1, P2, R1, 0x1, RZ ;
        /*0040*/                   IADD3.X R4, R3, RZ, RZ, P2, !PT ;
        /*0050*/                   ISETP.EQ.AND P3, PT, R4, 0x3, PT ;
        /*0060*/             @!P3  EXIT ;
        /*0070*/                   NOP ;
        /*0080*/                   EXIT ;
"""


def test_the_follower_carries() -> None:
    kernel: Kernel = sass.parse(f"\t.section\t.text.carries,\n.text.carries:\n{CARRIES}")[0]
    assert follow(kernel, Launch(90, b"", 32, 1)).issued["NOP"] == 1
