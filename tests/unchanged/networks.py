"""Tiny models and data with numbers that are the same on every machine.

Python promises that ``random.Random(seed).random()`` never changes; torch promises that of none of
its generators, and sin or cos may differ in the last bit between machines.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "NETWORKS",
    "dense_labels",
    "inputs_for",
    "labels_for",
    "network",
    "numbers",
    "soft_labels",
]

CLASSES = 4
_FEATURES = 6
_IMAGE = (2, 4, 4)


def numbers(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of mean 0 and variance 1 that depend on the name alone."""
    source = random.Random(name)
    values = [math.sqrt(3) * (2 * source.random() - 1) for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype)


class _Dropout(nn.Module):
    """Dropout by torch.rand: torch.nn.Dropout draws from other generators on other processors."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape) < 0.5).to(x.dtype) * 2


class _OnceDifferentiable(torch.autograd.Function):
    """A tanh whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return upstream * (1 - y * y)


class _OnceDifferentiableTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _OnceDifferentiable.apply(x)


def _mlp(activation: nn.Module, *further: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(_FEATURES, 8), activation, *further, nn.Linear(8, CLASSES))


def _convolution(activation: nn.Module) -> nn.Sequential:
    # No bias in front of BatchNorm: its gradient would be nothing but rounding.
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        activation,
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


NETWORKS = {
    "linear": lambda: nn.Linear(_FEATURES, CLASSES),
    "gelu": lambda: _mlp(nn.GELU()),
    "relu": lambda: _mlp(nn.ReLU()),
    "dead_relu": lambda: _mlp(nn.ReLU()),
    "flat": lambda: _mlp(nn.GELU()),
    "dropout": lambda: _mlp(nn.GELU(), _Dropout()),
    "once_differentiable": lambda: _mlp(_OnceDifferentiableTanh()),
    "convolution": lambda: _convolution(nn.GELU()),
    "relu_convolution": lambda: _convolution(nn.ReLU()),
    "dense": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 4, 1)),
}


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of ``NETWORKS``; in "dead_relu" some gradients are 0, in "flat" all are small."""
    model = NETWORKS[name]()
    with torch.no_grad():
        for key, values in (*model.named_parameters(), *model.named_buffers()):
            made = numbers(f"{name}/{key}", *values.shape, dtype=torch.float64)
            if key.endswith("running_var"):
                made = 1 + made.abs()
            elif values.dim() > 1:
                made = made * 1.5 / math.sqrt(values[0].numel())
            elif values.is_floating_point():
                made = 0.3 * made + (1 if key == "1.weight" else 0)
            if name == "flat" and key.startswith("2."):
                made = made * 1e-4
            if name == "dead_relu" and key == "0.bias":
                made = made - 2
            if values.is_floating_point():
                values.copy_(made)
    return model.to(dtype)


def inputs_for(name: str, count: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    images = "convolution" in name or name == "dense"
    return numbers("inputs", count, *(_IMAGE if images else (_FEATURES,)), dtype=dtype)


def labels_for(model: nn.Module, inputs: Tensor) -> Tensor:
    """The class that the model predicts for two samples of three, another class for the third."""
    judge = copy.deepcopy(model).double().eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        predicted = judge(inputs.double()).argmax(dim=1)
    wrong = (torch.arange(inputs.shape[0]) % 3 == 2).reshape(-1, *[1] * (predicted.dim() - 1))
    return torch.where(wrong, (predicted + 1) % CLASSES, predicted)


def dense_labels(model: nn.Module, inputs: Tensor, ignored: int | None = None) -> Tensor:
    """Labels of every position, some of them ignored where ``ignored`` says how."""
    labels = labels_for(model, inputs)
    if ignored is not None:
        labels[:, 0, ::2] = ignored
        labels[-1] = ignored
    return labels


def soft_labels(model: nn.Module, inputs: Tensor) -> Tensor:
    """Each sample shares its label with the next one, as in mixup; [B, C] or [B, C, d1, ...]."""
    hard = torch.nn.functional.one_hot(labels_for(model, inputs), CLASSES).movedim(-1, 1)
    return (0.75 * hard + 0.25 * hard.roll(1, dims=0)).to(inputs.dtype)
