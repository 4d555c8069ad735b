"""The additive margin on CUDA, in the emulator, against the reference."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from backends.simt import AUTO, BLOCK, WARP, RefusedError, Simt
from simt_problems import (  # noqa: F401
    BF16,
    EMULATED,
    F16,
    F32,
    F64,
    INF,
    NORMS,
    POISONS,
    SCHEDULES,
    Loss,
    restored_device,
    ways,
)

from margin_ext.loss_settings import Reduction

pytestmark = EMULATED


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_additive_margin(dtype: torch.dtype, p: float) -> None:
    """Every variant; classes for one warp, for all warps of a block, and for a cluster."""
    for number, (variant, cluster) in enumerate(ways(p, dtype)):
        simt = Simt(variant, cluster, SCHEDULES[number % 4], POISONS[number % 2])
        for classes in (2, 300):
            smoothing = 0.1 if (number + classes) % 3 == 0 else 0.0
            Loss(3, classes, 500, p, dtype, smoothing=smoothing, tau=0.4).check(simt)


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_additive_margin_with_weights_and_ignored_samples(reduction: str) -> None:
    for variant, smoothing in ((AUTO, 0.3), (BLOCK, 0.0), (BLOCK, 0.3)):
        for shape in ((30,), (3, 5, 9)):
            Loss(
                7,
                4,
                shape=shape,
                size=30,
                reduction=reduction,
                weighted=True,
                ignored=True,
                scaled=len(shape) > 1,
                smoothing=smoothing,
                tau=1.5,
            ).check(Simt(variant))


def test_additive_margin_at_extremes() -> None:
    """Masked classes, certain and hopeless logits, a zero row, a row without bounds."""
    rows = [
        [1.0, -INF, -INF, -INF],
        [1.0, -INF, 0.5, 0.0],
        [200.0, 0.0, -1.0, 0.0],
        [-200.0, 0.0, 1.0, 0.0],
        [90.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5, 0.5],
        [1.0, 2.0, 0.5, 0.0],
    ]
    for variant, cluster in ((WARP, 0), (BLOCK, 1), (BLOCK, 2)):
        loss = Loss(len(rows), 4, 20, tau=5.0)
        loss.logits, loss.target = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64)
        loss.grad[0] = loss.grad[-1] = 0
        loss.grad[4] = 20 / math.sqrt(20)  # lowered by 100
        loss.check(Simt(variant, cluster))


def test_additive_margin_of_bad_labels() -> None:
    loss = Loss(4, 5, 30, tau=1.0)
    right = loss.run(Simt())
    loss.target[1] = 7
    loss.reduction = "none"
    out = loss.run(Simt())
    for i in (0, 1, 2, 5, 6):
        assert bool(out[i][1].isnan().all())
    torch.testing.assert_close(out[2][[0, 2, 3]], right[2][[0, 2, 3]])


def test_additive_margin_needs_a_row() -> None:
    with pytest.raises(RefusedError):
        Loss(4, 5, 30, tau=1.0, with_grad=False).run(Simt())
