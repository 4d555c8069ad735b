"""That what is timed computes the same: asserted before any clock is started."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.jobs import Job, contenders
from benchmarks.shapes import Shape
from benchmarks.timing import Contender

# Of the largest expected value. Results are rounded to the type of the gradients once; a reference
# in a narrow type rounds once more. Sums of 150,000 float32 terms differ in their last digits.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_MOST_ELEMENTS = 2**24  # judged in float64; more would not fit, and float32 is exact enough


def assert_agreement(
    job: Job, shape: Shape, rivals: dict[str, Contender], inputs: Inputs
) -> dict[str, float]:
    """Compare each contender with the reference on widened inputs.

    Returns:
        The largest error of each, over the largest expected value.

    Raises:
        AssertionError: One of them computes something else.
    """
    elements = shape.batch * (shape.size + shape.classes)
    wide = torch.float64 if elements <= _MOST_ELEMENTS else torch.float32
    expected = _results(contenders(job, shape, compiled=False)["reference"], inputs.widened(wide))
    worst = {}
    for name, rival in rivals.items():
        if name == "clone":
            continue
        found = _results(rival, inputs.copy())
        assert len(found) == len(expected), f"{job.name}: {name} has {len(found)} results"
        worst[name] = max(map(_error, found, expected))
        limit = _TOLERANCE[shape.dtype]
        assert worst[name] <= limit, (
            f"{job.name} at {shape.name}: {name} is off by {worst[name]:.2g} of the largest "
            f"value, more than {limit:.0e}; nothing was timed"
        )
    return worst


def _results(rival: Contender, inputs: Inputs) -> list[Tensor]:
    results = rival.call(rival.ready(inputs))
    assert isinstance(results, tuple)
    return [tensor.detach() for tensor in results]


def _error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; NaN only where NaN is expected."""
    if not expected.numel():
        return 0.0
    wide = expected.to(torch.promote_types(expected.dtype, torch.float32))
    scale = wide.abs().nan_to_num(0.0).max().item()
    difference = (found.to(wide.dtype) - wide).abs()
    both_nan = found.isnan() & wide.isnan()
    largest = torch.where(both_nan, 0.0, difference).max().item()
    return math.inf if math.isnan(largest) else largest / max(scale, 1e-30)
