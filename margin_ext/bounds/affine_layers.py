"""Affine layers as a linear relaxation needs them: applied, transposed, and with absolute values.

Everything is computed in float64 on a copy of the layer.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AffineLayer", "PairDifferences", "PairMaxima", "Scale", "Windows"]

# At most so many roundings go into one output of a layer below that sums few numbers.
_FEW = 8


class AffineLayer:
    """h -> W h + b of one layer.

    Attributes:
        given: Shape [1, ...] of an input.
        gives: Shape [1, ...] of an output.
        sums: An upper bound on how many roundings one number of W h + b goes through. 0: the
            layer only moves numbers.
        terms: The larger of ``sums`` and the same bound for W^T r.
        bytes: Memory of the copies of the layer.
    """

    def __init__(self, layer: nn.Module, given: torch.Size, device: torch.device) -> None:
        # A copy: the model is left as it is.
        self._layer = copy.deepcopy(layer).double().requires_grad_(False)
        self._absolute = _absolute(self._layer)
        zero = torch.zeros(given, dtype=torch.float64, device=device)
        self.given = given
        # The output at 0 is b.
        self._bias = self._layer(zero)
        self.gives: torch.Size = self._bias.shape
        self.sums, self.terms = _terms(self._layer, given)
        self.bytes = sum(
            tensor.nbytes
            for copied in (self._layer, self._absolute)
            for tensor in (*copied.parameters(), *copied.buffers())
        )

    def __call__(self, h: Tensor) -> Tensor:
        """W h + b for h [B, ...]."""
        out: Tensor = self._layer(h)
        return out

    def magnitude(self, h: Tensor) -> Tensor:
        """|W| h + |b| for h [1, ...] >= 0."""
        out: Tensor = self._absolute(h)
        return out

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Linear forms on the output, rows [S, ...], as forms on the input and constants [S].

        The forms are rows @ W, the constants rows @ b.
        """
        rows = rows.reshape(rows.shape[0], *self.gives[1:])
        return self._transposed(rows), (rows * self._bias).flatten(1).sum(dim=1)

    def _transposed(self, rows: Tensor) -> Tensor:
        layer, shape = self._layer, (rows.shape[0], *self.given[1:])
        if isinstance(layer, nn.Linear):
            return rows @ layer.weight
        if isinstance(layer, Scale):
            return rows * layer.weight
        if isinstance(layer, nn.Conv2d) and _pads_with_zeros(layer):
            given: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.grad.conv2d_input(shape, layer.weight, rows, *given)  # type: ignore[attr-defined, no-any-return]
        # The layer is affine: a backward pass gives rows @ W, whatever the input.
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            zero = rows.new_zeros(shape).requires_grad_()
            (pulled,) = torch.autograd.grad(layer(zero), zero, rows, create_graph=again)
        return pulled


class Scale(nn.Module):
    """(h - mean) * weight + bias a channel: BatchNorm in evaluation mode."""

    weight: Tensor
    mean: Tensor
    bias: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, dimensions: int) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        weight = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            weight = weight * norm.weight.double()
        shift = norm.bias.double() if norm.bias is not None else torch.zeros_like(mean)
        shape = (-1, *[1] * (dimensions - 2))
        for name, value in (("weight", weight), ("mean", mean), ("bias", shift)):
            self.register_buffer(name, value.detach().reshape(shape))

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, channels, ...] to the same shape."""
        out: Tensor = (h - self.mean) * self.weight + self.bias
        return out


class Windows(nn.Module):
    """The windows of a pooling layer: [B, channels, H, W] to [B, size, channels, h, w]."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.stride = stride

    def forward(self, h: Tensor) -> Tensor:
        """Copy every number as often as windows hold it."""
        windows = h.unfold(2, self.size[0], self.stride[0]).unfold(3, self.size[1], self.stride[1])
        return windows.flatten(4).movedim(4, 1)


class PairDifferences(nn.Module):
    """[B, m, ...] as a - b and b of m // 2 pairs, and the number that is left over where m is odd.

    With ReLU on the differences and :class:`PairMaxima` after it, max(a, b) = relu(a - b) + b.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, m, ...] to [B, m, ...], the differences first."""
        a, b, rest = _halves(h)
        return torch.cat([a - b, b, rest], dim=1)


class PairMaxima(nn.Module):
    """The maxima of the pairs, after :class:`PairDifferences` and ReLU."""

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, m, ...] to [B, m - m // 2, ...]."""
        a, b, rest = _halves(h)
        return torch.cat([a + b, rest], dim=1)


class _PairSums(nn.Module):
    """|W| of :class:`PairDifferences`."""

    def forward(self, h: Tensor) -> Tensor:
        a, b, rest = _halves(h)
        return torch.cat([a + b, b, rest], dim=1)


def _halves(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second of every pair, and the number that is left over, if there is one."""
    half = h.shape[1] // 2
    return h[:, :half], h[:, half : 2 * half], h[:, 2 * half :]


def _absolute(layer: nn.Module) -> nn.Module:
    """The layer with |W| and |b|."""
    if isinstance(layer, PairDifferences):
        return _PairSums()
    if isinstance(layer, Scale):
        layer = copy.deepcopy(layer)
        # |(h - m) w + b| <= (|h| + |m|) |w| + |b|.
        layer.weight, layer.mean, layer.bias = (
            layer.weight.abs(), -layer.mean.abs(), layer.bias.abs(),
        )  # fmt: skip
        return layer
    if not any(True for _ in layer.parameters()):
        return layer
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.abs_()
    return layer


def _terms(layer: nn.Module, given: torch.Size) -> tuple[int, int]:
    """Roundings of one number of W h + b, and the larger of that and those of W^T r."""
    if isinstance(layer, nn.Linear):
        return layer.in_features + 1, max(layer.in_features, layer.out_features) + 1
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        taps = math.prod(layer.kernel_size)
        channels = max(layer.in_channels, layer.out_channels) // layer.groups
        # Other paddings than zeros repeat numbers.
        copies = 1 if _pads_with_zeros(layer) else math.prod(given[2:])
        return layer.in_channels // layer.groups * taps + 1, channels * taps * copies + 1
    whole = math.prod(given[2:])
    kinds: tuple[tuple[Any, int, int], ...] = (
        ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), whole, whole),
        (Scale, _FEW, _FEW),
        # The model compares the numbers themselves, which rounds nothing.
        ((PairDifferences, PairMaxima), 0, _FEW),
        (Windows, 0, whole),
    )
    found = ((sums, terms) for kind, sums, terms in kinds if isinstance(layer, kind))
    return next(found, (0, 0))


def _pads_with_zeros(layer: nn.Conv1d | nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
