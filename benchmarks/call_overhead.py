"""What a call of the loss costs before any data counts, and at a small batch; one thread.

    python -m benchmarks.call_overhead [--device cuda] [--out FILE]

Python included. Beside the whole (forward and backward) stand its parts and what torch's own
cross-entropy takes, so that one sees where the time goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import arguments
from benchmarks.agreement import assert_agreement
from benchmarks.cases import measure_all
from benchmarks.inputs import Inputs, random_inputs, regularizer
from benchmarks.jobs import TRAINING_JOB, contenders
from benchmarks.load import Load
from benchmarks.memory import keep_freed_memory
from benchmarks.samples import Measured, ratios_to
from benchmarks.shapes import MNIST, Shape
from benchmarks.timing import QUICK, Contender, Effort, time_on_cpu
from margin_ext import functional
from margin_ext.norms import op_exponent

WHOLE = "loss, forward and backward"
CROSS_ENTROPY = "cross_entropy, forward and backward"
NOTHING = "an autograd.Function that does nothing"
SMALL = Shape(128, MNIST, 10, "an MNIST training batch")
SHAPES = (Shape(4, (16,), 10, "so small that only calls cost"), SMALL)
_EFFORT = Effort(least_rounds=31, most_rounds=301, seconds=4.0, block_seconds=2e-3)


class _Nothing(torch.autograd.Function):
    """The least that a loss with its own backward in Python can cost: the bare function."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(logits, grad)
        return logits.new_empty(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        logits, grad = ctx.saved_tensors
        return logits, grad


def ways(shape: Shape) -> dict[str, Contender]:
    phi = regularizer(shape)

    def loss(x: Inputs) -> Tensor:
        return functional.average_margin_loss(x.logits, x.target, x.grad, regularizer=phi).loss

    def both(x: Inputs) -> object:
        return torch.autograd.grad(loss(x), (x.logits, x.grad))

    def forward(x: Inputs) -> object:
        with torch.no_grad():
            return loss(x)

    def op(x: Inputs) -> object:
        settings = (op_exponent(2), 1e-6, 1.0, phi.code, phi.lo, phi.hi, 0.0, -100, 1, True, True)
        with torch.no_grad():
            return torch.ops.margin_ext.average_margin_loss(
                x.logits, x.target, x.grad, None, None, None, *settings
            )

    def nothing(x: Inputs) -> object:
        return torch.autograd.grad(_Nothing.apply(x.logits, x.grad), (x.logits, x.grad))

    def plain(x: Inputs) -> object:
        return torch.autograd.grad(cross_entropy(x.logits, x.target), x.logits)

    rivals = contenders(TRAINING_JOB, shape, compiled=False)
    return {
        WHOLE: Contender(both),
        "loss, forward without gradients": Contender(forward),
        "the op alone": Contender(op),
        NOTHING: Contender(nothing),
        CROSS_ENTROPY: Contender(plain),
        "reference, forward and backward": rivals["reference"],
    }


def measure(shape: Shape, device: str, effort: Effort) -> dict[str, Any]:
    moved = TRAINING_JOB.moved(shape)
    inputs = random_inputs(shape, device, moved)
    rivals = contenders(TRAINING_JOB, shape, compiled=False)
    assert_agreement(TRAINING_JOB, shape, rivals, inputs)
    with Load() as load:
        if device == "cpu":
            measured = time_on_cpu(ways(shape), inputs, effort)
        else:
            from benchmarks.gpu_timing import time_on_cuda

            found = time_on_cuda(ways(shape), [inputs] * 100, effort)
            # What counts here is the time to issue a call.
            measured = {name: Measured({"wall": m.rounds["host"]}) for name, m in found.items()}
    return {
        "name": f"call overhead: {shape.name}",
        "shape": shape.name,
        "reason": shape.reason,
        "yardstick": CROSS_ENTROPY,
        "subject": [WHOLE],
        "contenders": {name: one.as_dict() for name, one in measured.items()},
        "over_yardstick": ratios_to(CROSS_ENTROPY, measured),
        "over_nothing": ratios_to(NOTHING, measured),
        "others_cores": load.others_cores,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.set_defaults(threads=1)  # no time for waking others
    given = parser.parse_args(argv)
    if given.device == "cpu":
        keep_freed_memory()
    with arguments.run(given):
        results = arguments.results("call_overhead", given)
        settings = given.device, QUICK if given.quick else _EFFORT
        measure_all(
            results,
            given,
            (
                (f"call overhead: {shape.name}", partial(measure, shape, *settings))
                for shape in SHAPES
            ),
            _summary,
        )


def _summary(case: dict[str, Any]) -> list[str]:
    return [
        f"{name} {contender['times']['wall']['median'] * 1e6:.1f} us"
        for name, contender in case["contenders"].items()
    ]


if __name__ == "__main__":
    main()
