"""The suite's jobs under pytest-benchmark, in small: ``pytest benchmarks --benchmark-enable``.

For work on one kernel: its table, histogram and comparison of saved runs come with the plugin. The
figures in docs/benchmarks.md come from ``python -m benchmarks``, which interleaves contenders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.agreement import assert_agreement
from benchmarks.inputs import random_inputs
from benchmarks.jobs import LOGITS_JOB, PART_JOBS, TRAINING_JOB, Job, contenders
from benchmarks.shapes import CPU_LOGITS, CPU_PARTS, CPU_TRAINING, Shape

_SMALL = 2**18  # bytes of a batch; it serves to compare versions, not to find limits


def _small(shape: Shape) -> Shape:
    """The same sample, type and norm, in a batch of at most 256 kB, at least one sample."""
    row = (shape.grad_bytes + shape.logits_bytes) // shape.batch
    return replace(shape, batch=max(1, min(shape.batch, _SMALL // row)))


def _cases() -> Iterator[Any]:
    listed = [(TRAINING_JOB, shape) for shape in CPU_TRAINING]
    listed += [(job, shape) for job in PART_JOBS for shape in CPU_PARTS]
    listed += [(LOGITS_JOB, shape) for shape in CPU_LOGITS]
    seen = set()
    for job, shape in listed:
        name = f"{job.name}: {_small(shape).name}"
        if name not in seen:
            seen.add(name)
            yield pytest.param(job, _small(shape), id=name)


@pytest.mark.parametrize("contender", ["clone", "fused", "reference"])
@pytest.mark.parametrize(("job", "shape"), list(_cases()))
def test_speed(benchmark: Any, job: Job, shape: Shape, contender: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = random_inputs(shape, device, job.moved(shape))
    rivals = contenders(job, shape, compiled=False)
    if contender == "fused":
        assert_agreement(job, shape, rivals, inputs)
    rival = rivals[contender]
    benchmark.group = f"{job.name}: {shape.name}"

    def timed(state: Any) -> None:
        rival.call(state)
        if device == "cuda":
            torch.cuda.synchronize()

    if rival.before is None:
        benchmark(timed, inputs)
    else:
        benchmark.pedantic(timed, setup=lambda: ((rival.ready(inputs),), {}), rounds=50)
