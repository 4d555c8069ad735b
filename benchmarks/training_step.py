"""A training step with each kind of margin, plain cross-entropy and adversarial training.

    python -m benchmarks.training_step [--device cuda] [--only REGEX] [--losses REGEX] [--out FILE]

Time and peak memory of a whole step (forward, loss, backward, SGD with momentum) relative to plain
cross-entropy in the same run, with the fused kernels and with the reference; and the kernels' share
of a step.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import arguments, profiling
from benchmarks.cases import measure_all
from benchmarks.load import Load
from benchmarks.models import Attention, Task, tasks
from benchmarks.samples import Measured, ratios_to
from benchmarks.step_losses import PLAIN
from benchmarks.steps import REFERENCE, Precision, Step, names
from benchmarks.timing import QUICK, Contender, Effort, time_on_cpu

# A GPU's times hardly scatter, so a few rounds are enough.
_EFFORT = {
    "cpu": Effort(least_rounds=3, most_rounds=15, seconds=12.0, block_seconds=0.02),
    "cuda": Effort(least_rounds=3, most_rounds=15, seconds=3.0, block_seconds=0.02),
}
# Fused and reference differ by rounding, which a network's backward pass amplifies.
_TOLERANCE = {False: 2e-3, True: 5e-2}  # by whether autocast is on


# Every loss compiles the network for itself, which takes minutes on a CPU.
_COMPILED_ON_CPU = ("mlp", "cnn")


def precisions(task: Task, given: argparse.Namespace) -> tuple[Precision, ...]:
    """How the network of a task runs."""
    eager = Precision("eager, fp32")
    if given.quick:
        return (eager,)
    if given.device == "cuda":
        return (
            eager,
            Precision("eager, bf16 autocast", autocast=True),
            *_unless(given.no_compile, "compiled, bf16 autocast", autocast=True),
        )
    skipped = given.no_compile or task.name not in _COMPILED_ON_CPU
    return (eager, *_unless(skipped, "compiled, fp32"))


def _unless(skipped: bool, name: str, autocast: bool = False) -> tuple[Precision, ...]:
    return () if skipped else (Precision(name, autocast=autocast, compiled=True),)


def measure(
    task: Task, precision: Precision, device: str, losses: str, effort: Effort
) -> dict[str, Any]:
    """One case of the results; with plain cross-entropy those of the losses that match."""
    torch.manual_seed(0)
    inputs = torch.rand(task.batch, *task.sample)
    target = torch.randint(task.classes, (task.batch,))
    model, inputs, target = task.build().to(device), inputs.to(device), target.to(device)
    model(inputs)  # lazy layers take their shape
    attention = any(isinstance(module, Attention) for module in model.modules())
    wanted = [
        name
        for name in names(attention, precision.compiled)
        if name == PLAIN or re.search(losses, name)
    ]
    steps, measured = _make_steps(wanted, model, inputs, target, precision)
    measured.update(_drop_disagreeing(steps, precision))
    with Load() as load:
        timed = time_on_cpu(
            {name: Contender(lambda _, step=step: step()) for name, step in steps.items()},
            None,
            effort,
        )
    for name, step in steps.items():
        timed[name].peak_bytes = profiling.peak_bytes(step, device)
        for rounds in timed[name].rounds.values():
            rounds[:] = [seconds / step.cycle for seconds in rounds]
    shares = {
        name: profiling.kernel_share(step, device)
        for name, step in steps.items()
        if not name.endswith(REFERENCE)
    }
    measured.update(timed)
    return {
        "name": f"{task.name}: {precision.name}",
        "task": task.name,
        "precision": precision.name,
        "batch": task.batch,
        "sample": list(task.sample),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "reason": task.reason,
        "yardstick": PLAIN,
        "subject": [name for name in steps if name != PLAIN and not name.endswith(REFERENCE)],
        "contenders": {name: measured[name].as_dict() for name in wanted},
        "over_yardstick": ratios_to(PLAIN, measured),
        "kernel_share": shares,
        "others_cores": load.others_cores,
    }


def _make_steps(
    wanted: list[str], model: nn.Module, inputs: Tensor, target: Tensor, precision: Precision
) -> tuple[dict[str, Step], dict[str, Measured]]:
    """The steps that this network can take, and why it cannot take the others."""
    steps, failed = {}, {}
    for name in wanted:
        step = Step(name, model, inputs, target, precision)
        try:
            with warnings.catch_warnings():
                # "auto" says that it fell back, torch.compile that TF32 is off.
                warnings.simplefilter("ignore")
                step.gradients()
        except (RuntimeError, ValueError) as error:
            failed[name] = Measured(failure=str(error).strip().split("\n", 1)[0])
        else:
            steps[name] = step
    return steps, failed


def _drop_disagreeing(steps: dict[str, Step], precision: Precision) -> dict[str, Measured]:
    """Take out the losses for which fused and reference leave other gradients, and say so."""
    dropped = {}
    for name in [name for name in steps if name + REFERENCE in steps]:
        other = steps[name + REFERENCE].model
        pairs = zip(steps[name].model.parameters(), other.parameters(), strict=True)
        grads = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
        error = sum((a - b).square().sum().item() for a, b in grads) ** 0.5
        size = sum(b.square().sum().item() for _, b in grads) ** 0.5
        limit = _TOLERANCE[precision.autocast]
        if not error <= limit * size:
            found = f"gradients of fused and reference differ by {error / size:.2g}"
            for one in (name, name + REFERENCE):
                del steps[one]
                dropped[one] = Measured(failure=f"{found}, more than {limit:.0e}")
    return dropped


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--losses", default="", help="regular expression that losses match")
    given = parser.parse_args(argv)
    with arguments.run(given):
        results = arguments.results("training_step", given, losses=given.losses)
        effort = QUICK if given.quick else _EFFORT[given.device]
        measure_all(
            results,
            given,
            (
                (
                    f"{task.name}: {precision.name}",
                    partial(measure, task, precision, given.device, given.losses, effort),
                )
                for task in tasks(given.device, given.quick)
                for precision in precisions(task, given)
            ),
            lambda case: [f"{k} {r['median']:.2f}" for k, r in case["over_yardstick"].items()],
        )


if __name__ == "__main__":
    main()
