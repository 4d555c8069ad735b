"""One call of every op in every variant, small: what compute-sanitizer and ncu look at.

compute-sanitizer --tool racecheck python -m benchmarks.gpu.every_kernel
"""

from __future__ import annotations

import math

import torch

from margin_ext._extension import require_ops
from margin_ext.regularizers import Regularizer

# Row lengths that csrc/cuda/policy.h sends to the variants warp, block, block in clusters and
# reread.
SIZES = (1, 17, 784, 3072, 20_000, 150_528, 1_000_003)
BATCH = 3


def main() -> None:
    """Run them all; what is wrong is the tool's to find."""
    require_ops("cuda")
    ops = torch.ops.margin_ext
    phi = Regularizer.ramp(0.0, 3.0)
    target = torch.tensor([0, -100, 4], device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logits = torch.randn(BATCH, 10, device="cuda", dtype=dtype)
        upstream = torch.rand(BATCH, device="cuda", dtype=wide)
        for q in (1.0, 2.0, math.inf, 1.5):
            settings = (q, 1e-6, 1.0, phi.code, phi.lo, phi.hi, 0.1, -100)
            for size in SIZES:
                grad = torch.randn(BATCH, size, device="cuda", dtype=dtype)
                ops.first_order_margin(upstream, grad, q, 1e-6, None)
                ops.dual_direction(grad, upstream, grad, q, None)
                out = ops.average_margin_loss(
                    logits, target, grad, None, None, None, *settings, 1, True, True
                )
                ops.scale_gradients_(out[5], out[6], upstream[:1], out[4])
                ops.average_margin_loss_backward(
                    upstream, logits, target, grad, None, None, None, *settings, True, True
                )
        ops.logit_gap(logits, target, None, -100)
        ops.average_margin_loss(logits, target, None, None, None, None, *settings, 1, True, False)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
