"""Every op at six full sizes, once: what ncu profiles.

ncu --kernel-name-base demangled --kernel-name regex:margin::cuda \\
    python -m benchmarks.gpu.full_sizes
"""

from __future__ import annotations

import math

import torch

from benchmarks.inputs import TAU, random_inputs, regularizer
from benchmarks.shapes import CIFAR, IMAGENET, MIDDLE, MNIST, Shape
from margin_ext import average_margin_loss
from margin_ext._extension import require_ops
from margin_ext.functional import additive_margin_loss

SHAPES = (
    Shape(100_000, MNIST, 10, "a warp a row"),
    Shape(32_768, CIFAR, 10, "a warp a row, in shared memory"),
    Shape(32_768, CIFAR, 10, "16 bits", torch.bfloat16),
    Shape(8192, MIDDLE, 200, "a block a row"),
    Shape(2048, IMAGENET, 1000, "a cluster a row"),
    Shape(2048, IMAGENET, 1000, "a cluster a row, 16 bits", torch.bfloat16),
)


def call(shape: Shape, device: str = "cuda") -> None:
    """The loss, forward and backward."""
    inputs = random_inputs(shape, device, 0)
    out = average_margin_loss(
        inputs.logits,
        inputs.target,
        inputs.grad,
        regularizer=regularizer(shape),
        p=shape.p,
        input_std=shape.channel_std,
    )
    torch.autograd.grad(out.loss, (inputs.logits, inputs.grad), inputs.minus_one)


def call_others(shape: Shape, device: str = "cuda") -> None:
    """An attack's step, the margins to one class in all norms, and the additive margin."""
    inputs = random_inputs(shape, device, 0)
    grad, ops = inputs.grad.detach(), torch.ops.margin_ext
    ends = [inputs.factor.new_full((1,), end) for end in (-TAU, TAU)]
    step = (inputs.base, grad, inputs.factor, inputs.center, inputs.factor)
    ops.attack_step(*step, 2.0, 1, *ends, None)
    ops.class_margins(
        inputs.gap.detach().unsqueeze(1), grad.unsqueeze(1), [1.0, 2.0, math.inf], None
    )
    additive_margin_loss(inputs.logits.detach(), inputs.target, grad, tau=TAU)


def main() -> None:
    """One shape after the other; memory is given back in between."""
    require_ops("cuda")
    for shape in SHAPES:
        call(shape)
        call_others(shape)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
