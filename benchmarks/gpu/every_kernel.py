"""One call of every op in every variant, small: what compute-sanitizer looks at.

compute-sanitizer --tool racecheck python -m benchmarks.gpu.every_kernel
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext._extension import require_ops
from margin_ext.regularizers import Regularizer

# Row lengths that csrc/cuda/policy.h sends to the variants warp, block, block in clusters and
# reread.
SIZES = (1, 17, 784, 3072, 20_000, 150_528, 1_000_003)
BATCH = 3
# Kernels take samples in turn, with buffers that alternate. So many rows of these sizes give each
# group of an H100 at least three samples: 132 multiprocessors hold up to 6 x 4 warps for 784
# elements, 3 blocks for 20,000 and 32 clusters for 150,528.
LOOPS = {784: 10_000, 20_000: 1_200, 150_528: 100}


def main() -> None:
    """Run them all; what is wrong is the tool's to find."""
    require_ops("cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for q in (1.0, 2.0, math.inf, 1.5):
            for size in SIZES:
                call_ops(BATCH, size, dtype, q)
                call_ops(BATCH, size, dtype, q, aligned=False)
        call_ops(BATCH, 3072, dtype, 2.0, channels=3)
    for dtype in (torch.float32, torch.bfloat16):
        for size, batch in LOOPS.items():
            call_ops(batch, size, dtype, 2.0)
    torch.cuda.synchronize()


def call_ops(
    batch: int, size: int, dtype: torch.dtype, q: float, *, aligned: bool = True, channels: int = 0
) -> None:
    """Every op once.

    Args:
        batch: Rows; the second sample is ignored.
        size: Elements of a row.
        dtype: Of logits and rows.
        q: The dual norm.
        aligned: Whether rows may begin at 16-byte boundaries.
        channels: Factors for so many channels; 0: none.
    """
    ops = torch.ops.margin_ext
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    phi = Regularizer.ramp(0.0, 3.0)
    logits = torch.randn(batch, 10, device="cuda", dtype=dtype)
    target = torch.full((batch,), 4, device="cuda")
    target[1] = -100
    upstream = torch.rand(batch, device="cuda", dtype=wide)
    grad = rows(batch, size, dtype, aligned)
    scale = torch.rand(channels, device="cuda", dtype=wide) + 0.5 if channels else None
    settings = (q, 1e-6, 1.0, phi.code, phi.lo, phi.hi, 0.1, -100)
    ops.logit_gap(logits, target, None, -100)
    ops.first_order_margin(upstream, grad, q, 1e-6, scale)
    ops.dual_direction(grad, upstream, grad, q, scale)
    ops.average_margin_loss(logits, target, None, None, None, None, *settings, 1, True, False)
    out = ops.average_margin_loss(logits, target, grad, None, None, scale, *settings, 1, True, True)
    ops.scale_gradients_(out[5], out[6], upstream[:1], out[4])
    ops.average_margin_loss_backward(
        upstream, logits, target, grad, None, None, scale, *settings, True, True
    )


def rows(batch: int, size: int, dtype: torch.dtype, aligned: bool) -> Tensor:
    """Random rows [batch, size], or the same one element off every 16-byte boundary."""
    if aligned:
        return torch.randn(batch, size, device="cuda", dtype=dtype)
    return torch.randn(batch * size + 1, device="cuda", dtype=dtype)[1:].view(batch, size)


if __name__ == "__main__":
    main()
