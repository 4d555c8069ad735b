"""A model as affine layers with activations in between, for certified bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margin_ext.bounds.affine_layers import (
    AffineLayer,
    PairDifferences,
    PairMaxima,
    Scale,
    Windows,
)
from margin_ext.bounds.convex_activations import ConvexActivation, Rectifier, SoftRectifier
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.plain_layers import plain_layers

__all__ = ["Stage", "relaxed_network"]

_COVERED = (
    "certified bounds cover Linear, Conv1d, Conv2d, AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, "
    "BatchNorm and Dropout in eval mode, Flatten, Unflatten and Identity, with ReLU, LeakyReLU or "
    "Softplus in between, in a Sequential"
)

_AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass
class Stage:
    """Affine layers, and the activation after them.

    Attributes:
        layers: At least one.
        activation: None after the last stage, whose output is the logits.
        rectified: How many units the activation is applied to: the first ones of the flattened
            output. The others pass unchanged.
    """

    layers: list[AffineLayer]
    activation: ConvexActivation | None = None
    rectified: int = 0

    @property
    def units(self) -> int:
        """Numbers that come out of the last affine layer."""
        return int(self.layers[-1].gives.numel())

    def affine(self, h: Tensor) -> Tensor:
        """The affine layers' output [B, ...]."""
        for layer in self.layers:
            h = layer(h)
        return h

    def activate(self, h: Tensor) -> Tensor:
        """The activation of the affine layers' output [B, ...]."""
        if self.activation is None:
            return h
        flat = h.flatten(1)
        acted = self.activation(flat[:, : self.rectified])
        return torch.cat([acted, flat[:, self.rectified :]], dim=1).reshape(h.shape)

    def __call__(self, h: Tensor) -> Tensor:
        """Affine layers and activation."""
        return self.activate(self.affine(h))


def relaxed_network(model: Model, inputs: Tensor) -> list[Stage]:
    """The model's stages in float64, for inputs of this shape and device.

    Raises:
        TypeError: A layer is not covered, is in training mode, has hooks or a replaced forward.
    """
    builder = _Builder(inputs[:1].shape, inputs.device)
    for layer in plain_layers(model):
        builder.add(layer)
    return builder.finish()


class _Builder:
    """Adds layers one by one to the stages."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.stages: list[Stage] = [Stage([])]

    def add(self, layer: nn.Module) -> None:
        kind = type(layer)
        if isinstance(layer, (nn.Dropout, *_NORMS)) and layer.training:
            raise TypeError(f"a {kind.__name__} is in training mode: call model.eval()")
        if kind in _NORMS and layer.running_mean is not None:
            self._affine(Scale(layer, len(self.shape)))  # type: ignore[arg-type]
        elif kind in _AFFINE and getattr(layer, "divisor_override", None) is None:
            self._affine(layer)
        elif kind is nn.MaxPool2d:
            self._max_pool(layer)  # type: ignore[arg-type]
        else:
            self._activation(_activation(layer))

    def finish(self) -> list[Stage]:
        if not self.stages[-1].layers:
            self._affine(nn.Identity())
        return self.stages

    def _affine(self, layer: nn.Module) -> None:
        affine = AffineLayer(layer, self.shape, self.device)
        self.stages[-1].layers.append(affine)
        self.shape = affine.gives

    def _activation(self, activation: ConvexActivation, units: int | None = None) -> None:
        if not self.stages[-1].layers:
            self._affine(nn.Identity())
        stage = self.stages[-1]
        stage.activation = activation
        stage.rectified = stage.units if units is None else units
        self.stages.append(Stage([]))

    def _max_pool(self, layer: nn.MaxPool2d) -> None:
        """A tournament of pairs, whose maxima are ReLUs of differences."""
        size, stride = _pair(layer.kernel_size), _pair(layer.stride)
        plain = _pair(layer.padding) == (0, 0) and _pair(layer.dilation) == (1, 1)
        if not plain or layer.ceil_mode or layer.return_indices:
            raise TypeError(
                "certified bounds cover MaxPool2d without padding, dilation, ceil_mode and "
                f"return_indices, got {layer}"
            )
        self._affine(Windows(size, stride))
        while self.shape[1] > 1:
            half = self.shape[1] // 2
            self._affine(PairDifferences())
            self._activation(Rectifier(), half * self.shape[2:].numel())
            self._affine(PairMaxima())
        self._affine(nn.Flatten(1, 2))


def _activation(layer: nn.Module) -> ConvexActivation:
    if type(layer) is nn.ReLU:
        return Rectifier()
    if type(layer) is nn.LeakyReLU and 0 <= layer.negative_slope <= 1:
        return Rectifier(float(layer.negative_slope))
    if type(layer) is nn.Softplus and layer.beta > 0:
        return SoftRectifier(float(layer.beta), float(layer.threshold))
    raise TypeError(f"{_COVERED}; got {layer}")


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
