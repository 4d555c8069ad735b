"""Random inputs of the ops, such that no kernel has less to do than in training."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from benchmarks.shapes import Shape
from margin_ext import Regularizer
from margin_ext.statistics import STATISTIC_NAMES

TAU = 3.0


@dataclass
class Inputs:
    """One set of inputs.

    Attributes:
        logits: [B, C], requires grad.
        target: int64 [B].
        grad: [B, ...], requires grad.
        gap: Of the logits, float32 [B], requires grad.
        base: The shape of grad; what steps start from.
        center: The shape of grad; of the ball that steps stay in.
        factor: float32 [B]; lengths of steps, upstream of margins.
        upstream: Of the loss: 1, or a loss scaler's factor for fp16.
        minus_one: An upstream that is not 1, under which scaling in place does not run away.
        statistics: As the loss op gives them; all 1.
        std: A standard deviation for each channel, on the device, as a module keeps them; unused
            where the shape has none.
        moved: A tensor whose copy moves as many bytes as the op must.
        old: Its shape; memory that has been written to before.
    """

    logits: Tensor
    target: Tensor
    grad: Tensor
    gap: Tensor
    base: Tensor
    center: Tensor
    factor: Tensor
    upstream: Tensor
    minus_one: Tensor
    statistics: Tensor
    std: Tensor
    moved: Tensor
    old: Tensor

    def copy(self) -> Inputs:
        """Independent copies, for calls that write to their inputs."""
        copied = {}
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            copied[field.name] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return Inputs(**copied)

    def widened(self, dtype: torch.dtype) -> Inputs:
        """The same values in a wider type; what is there only to be copied is left out."""
        copied = {}
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            if field.name in ("moved", "old"):
                tensor = tensor[:0]
            wide = tensor.detach()
            # A copy in any case: some jobs write to their inputs.
            wide = wide.to(dtype, copy=True) if wide.is_floating_point() else wide.clone()
            copied[field.name] = wide.requires_grad_(tensor.requires_grad)
        return Inputs(**copied)


def regularizer(shape: Shape) -> Regularizer:
    """A ramp that no sample's margin leaves: on its flat parts a kernel might do less.

    Gradients have elements of size 1 / sqrt(D), so that the dual norm is about 1 for p = 2, sqrt(D)
    for p = inf and a few over sqrt(D) for p = 1, where margins are larger accordingly.
    """
    return Regularizer.ramp(0.0, TAU * shape.size**0.5 if shape.p == 1 else TAU)


def random_inputs(shape: Shape, device: str, moved_bytes: int, seed: int = 0) -> Inputs:
    """Draw one set: every label the largest logit by 0.5 to 1.5, as in a trained network."""
    source = torch.Generator(device=device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=source, device=device, dtype=shape.dtype)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=source, device=device)

    logits = normal(shape.batch, shape.classes)
    target = torch.randint(shape.classes, (shape.batch,), generator=source, device=device)
    label = target.unsqueeze(1)
    lead = (0.5 + uniform(shape.batch, 1)).to(shape.dtype)
    logits.scatter_(1, label, logits.amax(dim=1, keepdim=True) + lead)
    grad = normal(shape.batch, *shape.sample).div_(shape.size**0.5)
    elements = max(1, moved_bytes // (2 * shape.dtype.itemsize))
    scaler = float(shape.batch) if shape.dtype == torch.float16 else 1.0
    return Inputs(
        logits=logits.requires_grad_(),
        target=target,
        grad=grad.requires_grad_(),
        gap=(0.5 + uniform(shape.batch)).requires_grad_(),
        base=normal(shape.batch, *shape.sample),
        center=normal(shape.batch, *shape.sample),
        factor=0.5 + uniform(shape.batch),
        upstream=torch.full((), scaler, device=device),
        minus_one=torch.full((), -1.0, device=device),
        statistics=torch.ones(len(STATISTIC_NAMES), device=device),
        std=torch.tensor(shape.channel_std or [1.0], device=device),
        moved=normal(elements),
        old=normal(elements),
    )
