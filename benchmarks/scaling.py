"""How the cost of the loss, forward and backward, grows with B, D, C and threads.

    python -m benchmarks.scaling [--device cuda] [--only REGEX] [--out FILE]

Fused against the eager reference and a clone of the same bytes; one quantity grows, the others
stay. The report draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import arguments, environment
from benchmarks.agreement import assert_agreement
from benchmarks.cases import measure_all
from benchmarks.inputs import random_inputs
from benchmarks.jobs import TRAINING_JOB, contenders
from benchmarks.load import Load
from benchmarks.samples import ratios_to
from benchmarks.shapes import CIFAR, Shape
from benchmarks.timing import QUICK, Effort, time_on_cpu

_EFFORT = Effort(least_rounds=7, most_rounds=21, seconds=0.6)
_CIFAR = Shape(128, CIFAR, 10, "the point that all sweeps share: a CIFAR training batch")
_THREADED = replace(_CIFAR, batch=2048, reason="25 MB, so that every thread has work")


def sweeps(device: str, quick: bool) -> Iterator[tuple[str, int, Shape]]:
    """What grows, its value, and the shape."""
    batches = [2**n for n in range(0, 13 if device == "cpu" else 17, 2)]
    sizes = [4**n for n in range(2, 10)]
    classes = [10, 100, 1000, 10_000, 100_000]
    if quick:
        batches, sizes, classes = [1, 4], [16, 64], [10, 40]
    base = replace(_CIFAR, batch=4, sample=(16,)) if quick else _CIFAR
    for batch in batches:
        yield "B", batch, replace(base, batch=batch)
    for size in sizes:
        yield "D", size, replace(base, sample=(size,))
    for count in classes:
        yield "C", count, replace(base, classes=count)
    if device == "cpu":
        for threads in thread_counts():
            yield "threads", threads, base if quick else _THREADED


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all cores."""
    cores = environment.usable_cores()
    return sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores})


def measure(grows: str, value: int, shape: Shape, device: str, effort: Effort) -> dict[str, Any]:
    moved = TRAINING_JOB.moved(shape)
    rivals = contenders(TRAINING_JOB, shape, compiled=False)
    assert_agreement(TRAINING_JOB, shape, rivals, random_inputs(shape, device, moved))
    with Load() as load:
        if device == "cpu":
            measured = time_on_cpu(rivals, random_inputs(shape, device, moved), effort)
        else:
            from benchmarks.gpu_timing import buffers_past_l2, time_on_cuda

            seeds = range(buffers_past_l2(moved))
            inputs = [random_inputs(shape, device, moved, seed) for seed in seeds]
            measured = time_on_cuda(rivals, inputs, effort)
    return {
        "name": f"{grows} = {value}",
        "grows": grows,
        "value": value,
        "shape": shape.name,
        "moved_bytes": moved,
        "yardstick": "clone",
        "subject": ["fused"],
        "contenders": {name: one.as_dict() for name, one in measured.items()},
        "over_yardstick": ratios_to("clone", measured),
        "over_fused": ratios_to("fused", measured),
        "others_cores": load.others_cores,
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments.parser(__doc__).parse_args(argv)
    with arguments.run(given):
        threads = torch.get_num_threads()
        results = arguments.results("scaling", given)
        effort = QUICK if given.quick else _EFFORT

        def one(grows: str, value: int, shape: Shape) -> dict[str, Any]:
            torch.set_num_threads(value if grows == "threads" else threads)
            return measure(grows, value, shape, given.device, effort)

        measure_all(
            results,
            given,
            (
                (f"{grows} = {value}", partial(one, grows, value, shape))
                for grows, value, shape in sweeps(given.device, given.quick)
            ),
            lambda case: [
                f"{k} {r['median']:.2f} x clone" for k, r in case["over_yardstick"].items()
            ],
        )


if __name__ == "__main__":
    main()
