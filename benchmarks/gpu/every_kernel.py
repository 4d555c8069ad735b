"""One call of every op in every variant, small: what compute-sanitizer looks at.

    compute-sanitizer --tool racecheck python -m benchmarks.gpu.every_kernel [TYPE ...]

Each type's large batches come first, then its sizes, norm after norm; a line says what is done, so
that one sees how far a run got that was stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from margin_ext._extension import require_ops
from margin_ext.accumulation import accumulation_dtype
from margin_ext.regularizers import Regularizer

# Row lengths that csrc/cuda/policy.h sends to the variants warp, block, block in clusters and
# reread.
SIZES = (1, 17, 784, 3072, 20_000, 150_528, 1_000_003)
BATCH = 3
TYPES = ("float32", "bfloat16", "float16", "float64")
ADDITIVE = 5  # the additive margin among the regularizers of the ops
# Kernels take samples in turn, with buffers that alternate. So many rows of these sizes give each
# group of an H100 at least three samples: 132 multiprocessors hold up to 6 x 4 warps for 784
# elements, 3 blocks for 20,000 and 32 clusters for 150,528.
LOOPS = {784: 10_000, 20_000: 1_200, 150_528: 100}


def main(line: Sequence[str] | None = None) -> None:
    """Run them all; what is wrong is the tool's to find."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("types", nargs="*", default=TYPES, help="of rows; default: all")
    require_ops("cuda")
    for name in parser.parse_args(line).types:
        dtype = getattr(torch, name)
        for size, batch in LOOPS.items():
            call_ops(batch, size, dtype, 2.0)
        call_ops(LOOPS[784], 784, dtype, math.inf)
        call_ops(BATCH, 3072, dtype, 2.0, channels=3)
        _done(f"{name}, large batches")
        for q in (2.0, math.inf, 1.0, 1.5):
            for size in SIZES:
                call_ops(BATCH, size, dtype, q)
                call_ops(BATCH, size, dtype, q, aligned=False)
            _done(f"{name}, q = {q:g}")


def _done(what: str) -> None:
    torch.cuda.synchronize()
    print(what, flush=True)


def call_ops(
    batch: int,
    size: int,
    dtype: torch.dtype,
    q: float,
    *,
    aligned: bool = True,
    channels: int = 0,
    device: str = "cuda",
) -> None:
    """Every op once.

    Args:
        batch: Rows; the second sample is ignored.
        size: Elements of a row.
        dtype: Of logits and rows.
        q: The dual norm.
        aligned: Whether rows may begin at 16-byte boundaries.
        channels: Factors for so many channels; 0: none.
        device: Where.
    """
    ops = torch.ops.margin_ext
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    phi = Regularizer.ramp(0.0, 3.0)
    logits = torch.randn(batch, 10, device=device, dtype=dtype)
    target = torch.full((batch,), 4, device=device)
    target[1] = -100
    upstream = torch.rand(batch, device=device, dtype=wide)
    grad = rows(batch, size, dtype, aligned, device)
    if channels:
        grad = grad.view(batch, channels, -1)
    scale = torch.rand(channels, device=device, dtype=wide) + 0.5 if channels else None
    settings = (q, 1e-6, 1.0, phi.code, phi.lo, phi.hi, 0.1, -100)
    ops.logit_gap(logits, target, None, -100)
    ops.first_order_margin(upstream, grad, q, 1e-6, scale)
    ops.dual_direction(grad, upstream, grad, q, scale)
    step_of_attacks(grad, upstream, q, scale)
    margins_to_classes(grad, q, scale)
    ops.average_margin_loss(logits, target, None, None, None, None, *settings, 1, True, False)
    out = ops.average_margin_loss(logits, target, grad, None, None, scale, *settings, 1, True, True)
    ops.scale_gradients_(out[5], out[6], upstream[:1], out[4])
    ops.average_margin_loss_backward(
        upstream, logits, target, grad, None, None, scale, *settings, True, True
    )
    additive = (q, 1e-6, 1.0, ADDITIVE, 0.0, 0.5, 0.1, -100)
    ops.average_margin_loss(logits, target, grad, None, None, scale, *additive, 1, True, True)


def step_of_attacks(grad: Tensor, number: Tensor, q: float, scale: Tensor | None) -> None:
    """attack_step: with and without a gradient, a center, a ball, a range; in place.

    Args:
        grad: The rows.
        number: A number for each sample.
        q: The dual norm; for infinity, of one coordinate and of several.
        scale: Factors of channels.
    """
    ops = torch.ops.margin_ext
    low, high = (number.new_full((1 if scale is None else scale.numel(),), v) for v in (-1.0, 1.0))
    x, zero = grad.clone(), torch.zeros_like(grad)
    ops.attack_step(x, grad, number, zero, number, q, 1, low, high, scale)
    ops.attack_step(x, grad, number, None, None, q, 1, None, None, scale)
    ops.attack_step(x, None, None, zero, number, q, 1, low, high, scale)
    several = min(3, grad[0].numel()) if math.isinf(q) else 1
    ops.attack_step_(x, grad, number, None, number, q, several, None, None, scale)


def margins_to_classes(grad: Tensor, q: float, scale: Tensor | None) -> None:
    """class_margins of a few classes, in one norm and in all.

    Args:
        grad: Rows, of which each sample takes several, as far as they go.
        q: The dual norm.
        scale: Factors of channels.
    """
    classes = 3 if grad.shape[0] <= BATCH else 1
    rows = grad.unsqueeze(1).expand(-1, classes, *grad.shape[1:])
    gap = grad.new_ones(grad.shape[0], classes, dtype=accumulation_dtype(grad))
    for norms in ([q], [1.0, 2.0, math.inf, 3.0]):
        torch.ops.margin_ext.class_margins(gap, rows, norms, scale)


def rows(batch: int, size: int, dtype: torch.dtype, aligned: bool, device: str) -> Tensor:
    """Random rows [batch, size], or the same one element off every 16-byte boundary."""
    if aligned:
        return torch.randn(batch, size, device=device, dtype=dtype)
    return torch.randn(batch * size + 1, device=device, dtype=dtype)[1:].view(batch, size)


if __name__ == "__main__":
    main()
