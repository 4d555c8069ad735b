"""Outputs that the last cache cannot hold are written past it: the same bits as in small calls."""

from __future__ import annotations

import pytest
import torch
from problems import NORMS

from margin_ext import dual_direction
from margin_ext._extension import cpu_library

# More than half of the last cache of any but the largest server processors, which is where
# csrc/cpu/gradient_rows.h begins to write past it.
LARGE = 64 << 20

pytestmark = pytest.mark.skipif(not cpu_library.loaded, reason="no compiled library")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("p", [p for p in NORMS if p in (1, 2, float("inf"))])
@pytest.mark.usefixtures("two_threads")
def test_direction(p, dtype):
    """Rows of an odd length, so that they begin at every alignment."""
    size = 4099
    batch = LARGE // (size * dtype.itemsize) + 2
    grad = torch.randn(batch, size).to(dtype)
    whole = dual_direction(grad, p=p, base=grad)
    for i in (0, 1, 2, 3, batch // 2, batch - 1):
        assert whole[i].equal(dual_direction(grad[i : i + 1], p=p, base=grad[i : i + 1])[0])
