"""Every op: fused against the eager reference, torch.compile of it, and a copy of the same bytes.

    python -m benchmarks.kernels [--device cuda] [--only REGEX] [--no-compile] [--out FILE]

All contenders take turns in one process; results are compared with the reference before any clock
is started. On CUDA the copy is one of torch's elementwise kernels. On the CPU the process keeps the
memory that is freed, and the copy goes into memory that was used before; in rounds of their own the
fused kernels and a clone have all their results in fresh memory (benchmarks/memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import arguments, profiling, shapes
from benchmarks.agreement import assert_agreement
from benchmarks.cases import measure_all
from benchmarks.inputs import Inputs, random_inputs
from benchmarks.jobs import (
    ATTACK_JOB,
    CLONE,
    COPY,
    LOGITS_JOB,
    NEGATION,
    PART_JOBS,
    TRAINING_JOB,
    Job,
    contenders,
    copy_into_old,
    negation,
)
from benchmarks.load import Load
from benchmarks.memory import fresh_each_call, keep_freed_memory
from benchmarks.samples import Measured, ratios_to
from benchmarks.shapes import Shape
from benchmarks.timing import QUICK, Contender, Effort, time_on_cpu

# A GPU's times hardly scatter, so a few rounds are enough.
_EFFORT = {"cpu": Effort(seconds=1.0), "cuda": Effort(seconds=0.3)}


def jobs(device: str, quick: bool) -> Iterator[tuple[Job, Shape]]:
    """What is measured, the most telling first: an interrupted run has that at least."""
    for shape in shapes.training_shapes(device, quick):
        yield TRAINING_JOB, shape
    for job in PART_JOBS:
        listed = shapes.attack_shapes if job is ATTACK_JOB else shapes.part_shapes
        for shape in listed(device, quick):
            yield job, shape
    for shape in shapes.logits_shapes(device, quick):
        yield LOGITS_JOB, shape


def measure(
    job: Job, shape: Shape, device: str, compiled: bool, kept: bool, effort: Effort
) -> dict[str, Any]:
    """One case of the results. kept: whether the process keeps freed memory."""
    rivals = contenders(job, shape, compiled)
    moved = job.moved(shape)
    inputs = random_inputs(shape, device, moved)
    failures = {} if not compiled else _drop_uncompilable(rivals, inputs)
    errors = assert_agreement(job, shape, rivals, inputs)
    on_cpu = device == "cpu"
    yardstick = COPY if on_cpu else NEGATION
    in_turn = {yardstick: copy_into_old() if on_cpu else negation(), **rivals}
    with Load() as load:
        measured = _time(in_turn, shape, device, moved, effort)
        fresh = _time_in_fresh_memory(rivals, inputs, effort) if kept else {}
    for name, rival in rivals.items():
        _profile(measured[name], rival, inputs, device)
    measured.update(failures)
    return {
        "name": f"{job.name}: {shape.name}",
        "job": job.name,
        "phase": job.phase,
        "limit": job.limit,
        "shape": _shape_values(shape),
        "moved_bytes": moved,
        "yardstick": yardstick,
        "subject": ["fused"],
        "contenders": {name: one.as_dict() for name, one in measured.items()},
        "over_yardstick": ratios_to(yardstick, measured),
        "over_fused": ratios_to("fused", measured),
        "fresh_memory": {name: one.as_dict() for name, one in fresh.items()},
        "fresh_over_clone": ratios_to(CLONE, fresh),
        "errors": errors,
        "others_cores": load.others_cores,
    }


def _shape_values(shape: Shape) -> dict[str, Any]:
    return {
        "batch": shape.batch,
        "size": shape.size,
        "classes": shape.classes,
        "dtype": shapes.SHORT_NAMES[shape.dtype],
        "p": f"{shape.p:g}",
        "grad_bytes": shape.grad_bytes,
        "reason": shape.reason,
    }


def _time(
    rivals: dict[str, Contender], shape: Shape, device: str, moved: int, effort: Effort
) -> dict[str, Measured]:
    if device == "cpu":
        return time_on_cpu(rivals, random_inputs(shape, device, moved), effort)
    from benchmarks.gpu_timing import buffers_past_l2, time_on_cuda

    count = buffers_past_l2(moved)
    return time_on_cuda(
        rivals, [random_inputs(shape, device, moved, seed) for seed in range(count)], effort
    )


def _time_in_fresh_memory(
    rivals: dict[str, Contender], inputs: Inputs, effort: Effort
) -> dict[str, Measured]:
    """The fused kernels and the clone, where no freed memory can be had."""
    chosen = {name: fresh_each_call(rivals[name]) for name in (CLONE, "fused")}
    return time_on_cpu(chosen, inputs, replace(effort, seconds=effort.seconds / 2))


def _drop_uncompilable(rivals: dict[str, Contender], inputs: Any) -> dict[str, Measured]:
    """Take out the compiled contender where it cannot be compiled here, and say why."""
    rival = rivals["compiled"]
    try:
        rival.call(rival.ready(inputs.copy()))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        del rivals["compiled"]
        first_line = str(error).strip().split("\n", 1)[0]
        return {"compiled": Measured(failure=f"{type(error).__name__}: {first_line}")}
    return {}


def _profile(measured: Measured, rival: Contender, inputs: Any, device: str) -> None:
    state = rival.ready(inputs)
    measured.peak_bytes = profiling.peak_bytes(lambda: rival.call(state), device)
    if device == "cuda":
        states = [rival.ready(inputs) for _ in range(2)]
        measured.launches = profiling.launches(lambda: rival.call(states.pop()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    given = parser.parse_args(argv)
    torch._dynamo.config.recompile_limit = 10_000  # each shape gets a graph of its own
    with arguments.run(given):
        compiled = not given.no_compile
        kept = given.device == "cpu" and keep_freed_memory()
        results = arguments.results("kernels", given, compiled=compiled, keeps_freed_memory=kept)
        settings = given.device, compiled, kept, QUICK if given.quick else _EFFORT[given.device]
        measure_all(
            results,
            given,
            (
                (f"{job.name}: {shape.name}", partial(measure, job, shape, *settings))
                for job, shape in jobs(given.device, given.quick)
            ),
            _summary,
        )


def _summary(case: dict[str, Any]) -> list[str]:
    parts = []
    if "fused" in case["over_yardstick"]:
        parts.append(f"{case['over_yardstick']['fused']['median']:.2f} x {case['yardstick']}")
    if "fused" in case["fresh_over_clone"]:
        parts.append(f"fresh {case['fresh_over_clone']['fused']['median']:.2f} x clone")
    parts += [f"{name} {r['median']:.1f} x fused" for name, r in case["over_fused"].items()]
    return parts


if __name__ == "__main__":
    main()
