"""Outputs that the last cache cannot hold are written past it: the same bits as in small calls."""

from __future__ import annotations

import pytest
import torch
from problems import NORMS

from margin_ext import dual_direction
from margin_ext._extension import cpu_library

# Past kStreamedBytes in csrc/cpu/gradient_rows.h.
LARGE = 9 << 20

pytestmark = pytest.mark.skipif(not cpu_library.loaded, reason="no compiled library")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.usefixtures("two_threads")
def test_direction(p, dtype):
    """Rows of an odd length, so that they begin at every alignment."""
    size = 4099
    batch = LARGE // (size * dtype.itemsize) + 2
    grad = torch.randn(batch, size).to(dtype)
    for options in ({}, {"base": grad}, {"input_std": 0.5}):
        whole = dual_direction(grad, p=p, **options)
        for i in (0, 1, 2, 3, batch // 2, batch - 1):
            part = {k: v[i : i + 1] if k == "base" else v for k, v in options.items()}
            assert whole[i].equal(dual_direction(grad[i : i + 1], p=p, **part)[0])
