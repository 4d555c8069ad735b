"""The shapes that kernels are timed at, each with the reason for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

MNIST = (1, 28, 28)  # 784
CIFAR = (3, 32, 32)  # 3072
MIDDLE = (3, 64, 64)  # 12288
IMAGENET = (3, 224, 224)  # 150528

NO_SAMPLE = (1,)  # for the op that sees logits only

SHORT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Shape:
    """One batch: grad [batch, *sample], logits [batch, classes].

    Attributes:
        batch: B.
        sample: Shape of one input.
        classes: C.
        reason: Why this shape is measured.
        dtype: Of logits and gradients.
        p: Threat norm.
        input_std: Whether gradients are rescaled by each channel's standard deviation.
    """

    batch: int
    sample: tuple[int, ...]
    classes: int
    reason: str
    dtype: torch.dtype = torch.float32
    p: float = 2.0
    input_std: bool = False

    @property
    def channel_std(self) -> list[float] | None:
        """One standard deviation a channel, none equal; None: inputs are not normalised."""
        if not self.input_std:
            return None
        return [0.2 + 0.01 * channel for channel in range(self.sample[0])]

    @property
    def size(self) -> int:
        """D."""
        return math.prod(self.sample)

    @property
    def grad_bytes(self) -> int:
        return self.batch * self.size * self.dtype.itemsize

    @property
    def logits_bytes(self) -> int:
        return self.batch * self.classes * self.dtype.itemsize

    @property
    def name(self) -> str:
        kind = SHORT_NAMES[self.dtype]
        if self.sample == NO_SAMPLE:
            return f"{self.batch}, C {self.classes}, {kind}"
        std = ", input_std" if self.input_std else ""
        return f"{self.batch} x {self.size}, C {self.classes}, {kind}, p {self.p:g}{std}"


_CIFAR_10MB = Shape(1024, CIFAR, 10, "CIFAR, 12.6 MB: the size from which the goal counts")

# The loss, forward and backward: what a training step runs. Batch and sample size go from what is
# all call overhead to what is all memory.
CPU_TRAINING = (
    Shape(1, MNIST, 10, "one small sample: nothing but call overhead"),
    Shape(128, MNIST, 10, "an MNIST training batch; in the L2 cache of a core"),
    Shape(4096, MNIST, 10, "short rows, 12.8 MB: the cost of a row beside that of its bytes"),
    Shape(128, CIFAR, 10, "a CIFAR training batch; 1.6 MB stay in the caches"),
    _CIFAR_10MB,
    Shape(128, MIDDLE, 200, "64 x 64 images (Tiny ImageNet), 6.3 MB"),
    Shape(512, MIDDLE, 200, "64 x 64 images, 25 MB"),
    Shape(1, IMAGENET, 1000, "a single ImageNet sample: threads must share one row"),
    Shape(32, IMAGENET, 1000, "an ImageNet batch, 19 MB"),
    Shape(128, IMAGENET, 1000, "an ImageNet batch, 77 MB: past any cache"),
    Shape(2048, CIFAR, 10, "bf16, 12.6 MB: widened on the way", torch.bfloat16),
    Shape(2048, CIFAR, 10, "fp16, 12.6 MB: the backward recomputes (loss scaler)", torch.float16),
    replace(_CIFAR_10MB, p=1.0, reason="p = 1: dual norm is the maximum, output nearly all zeros"),
    replace(_CIFAR_10MB, p=math.inf, reason="p = inf: dual norm is the sum, output is signs"),
    replace(_CIFAR_10MB, input_std=True, reason="normalised inputs: a factor for each channel"),
    Shape(256, CIFAR, 1000, "1000 classes on 32 x 32 images: logits count for a quarter"),
    Shape(64, CIFAR, 21841, "ImageNet-21k classes: the logits are the larger part"),
)

# Parts of it, and the other ops: small, 10 MB, long rows.
CPU_PARTS = (CPU_TRAINING[3], _CIFAR_10MB, CPU_TRAINING[8])
CPU_LOGITS = (
    Shape(128, NO_SAMPLE, 10, "a CIFAR batch: call overhead"),
    Shape(1024, NO_SAMPLE, 1000, "ImageNet classes"),
    Shape(256, NO_SAMPLE, 21841, "ImageNet-21k classes, 22 MB: long rows of logits"),
)

_HALF = torch.bfloat16
_GPU_WIDE = Shape(2048, IMAGENET, 1000, "ImageNet, 1.2 GB: past any cache, at full bandwidth")
CUDA_TRAINING = (
    Shape(1, MNIST, 10, "one small sample: the launch floor"),
    Shape(128, MNIST, 10, "an MNIST training batch: the launch floor"),
    Shape(100_000, MNIST, 10, "short rows, 314 MB: several rows a block"),
    Shape(128, CIFAR, 10, "a CIFAR training batch: two launches, 10 x eager"),
    Shape(1024, CIFAR, 10, "a large CIFAR batch: fits the L2"),
    Shape(32_768, CIFAR, 10, "rows of 12 KB, 403 MB"),
    Shape(8192, (1, 64, 64), 10, "D = 4096, 134 MB: the lower end of the bandwidth goal"),
    Shape(32_768, (1, 64, 64), 10, "D = 4096, 537 MB: the lower end of the bandwidth goal"),
    Shape(128, MIDDLE, 200, "64 x 64 images, a training batch"),
    Shape(8192, MIDDLE, 200, "64 x 64 images, 403 MB"),
    Shape(1, IMAGENET, 1000, "a single long row: one cluster, or one row over many blocks"),
    Shape(8, IMAGENET, 1000, "fewer rows than multiprocessors"),
    Shape(256, IMAGENET, 1000, "an ImageNet training batch, 154 MB"),
    _GPU_WIDE,
    Shape(7168, IMAGENET, 1000, "4.3 GB and more than 2^30 elements: 64-bit offsets"),
    Shape(100_000, MNIST, 10, "bf16, rows of 1.5 KB", _HALF),
    Shape(32_768, CIFAR, 10, "bf16, rows of 6 KB", _HALF),
    Shape(32_768, CIFAR, 10, "fp16, rows of 6 KB (loss scaler)", torch.float16),
    Shape(8192, MIDDLE, 200, "bf16, rows of 24 KB", _HALF),
    replace(_GPU_WIDE, dtype=_HALF, reason="bf16, long rows"),
    replace(_GPU_WIDE, dtype=torch.float16, reason="fp16: the backward recomputes (loss scaler)"),
    replace(_GPU_WIDE, p=1.0, reason="p = 1: no row need stay on chip"),
    replace(_GPU_WIDE, p=math.inf, reason="p = inf: only signs need stay on chip"),
    Shape(32_768, CIFAR, 10, "p = 1 on short rows", p=1.0),
    Shape(32_768, CIFAR, 10, "p = inf on short rows", p=math.inf),
    Shape(32_768, CIFAR, 10, "normalised inputs: a factor for each channel", input_std=True),
    replace(_GPU_WIDE, input_std=True, reason="normalised inputs, long rows"),
    Shape(8192, CIFAR, 1000, "1000 classes on 32 x 32 images"),
    Shape(4096, CIFAR, 21841, "ImageNet-21k classes: the logits are the larger part"),
    Shape(2048, (150_529,), 1000, "odd row length: no row but the first is aligned"),
)
CUDA_PARTS = (CUDA_TRAINING[3], CUDA_TRAINING[5], _GPU_WIDE)
CUDA_LOGITS = (
    Shape(128, NO_SAMPLE, 10, "a CIFAR batch: the launch floor"),
    Shape(8192, NO_SAMPLE, 1000, "ImageNet classes"),
    Shape(8192, NO_SAMPLE, 21841, "ImageNet-21k classes, 716 MB"),
)

_TINY = Shape(4, (1, 4, 4), 10, "smoke test: tiny")
QUICK_TRAINING = (
    _TINY,
    replace(_TINY, batch=3, dtype=torch.bfloat16, p=math.inf, reason="smoke test: bf16, p = inf"),
    replace(_TINY, dtype=torch.float16, reason="smoke test: fp16"),
    replace(_TINY, input_std=True, reason="smoke test: normalised inputs"),
)
QUICK_PARTS = (_TINY, replace(_TINY, p=1.0, reason="smoke test: p = 1"))


def training_shapes(device: str, quick: bool) -> tuple[Shape, ...]:
    """For the loss, forward and backward."""
    return QUICK_TRAINING if quick else CPU_TRAINING if device == "cpu" else CUDA_TRAINING


def part_shapes(device: str, quick: bool) -> tuple[Shape, ...]:
    """For parts of the loss and the other ops over gradients."""
    return QUICK_PARTS if quick else CPU_PARTS if device == "cpu" else CUDA_PARTS


def attack_shapes(device: str, quick: bool) -> tuple[Shape, ...]:
    """For a step of an attack: those of parts, and two of them under other threat norms."""
    parts = part_shapes(device, quick)
    steps = ((math.inf, "p = inf: a step along signs"), (1.0, "p = 1: the l1 ball"))
    others = (replace(shape, p=p, reason=reason) for p, reason in steps for shape in parts[:2])
    known = {shape.name for shape in parts}
    return (*parts, *(shape for shape in others if shape.name not in known))


def logits_shapes(device: str, quick: bool) -> tuple[Shape, ...]:
    """For the op that sees logits only; the sample counts for nothing."""
    return QUICK_PARTS[:1] if quick else CPU_LOGITS if device == "cpu" else CUDA_LOGITS
