"""The networks of the usual robustness benchmarks on CIFAR-10, for images in [0, 1].

The normalisation of the colours is their first layer, so that radii are in units of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

__all__ = ["resnet18", "wide_resnet_34_10"]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions (He et al., arXiv 1603.05027)."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(given), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(given, channels, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            None
            if stride == 1 and given == channels
            else nn.Conv2d(given, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(relu(self.norm2(self.conv1(active)))) + shortcut
        return out


def _network(first: int, widths: tuple[int, ...], blocks: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Normalised(), nn.Conv2d(3, first, 3, padding=1, bias=False)]
    given = first
    for stage, channels in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(_PreActivationBlock(given, channels, stride))
            given = channels
    layers += [nn.BatchNorm2d(given), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(given, classes))


def resnet18(classes: int = 10) -> nn.Sequential:
    """Pre-activation ResNet-18 for 32 x 32 images: four stages of two blocks."""
    return _network(64, (64, 128, 256, 512), 2, classes)


def wide_resnet_34_10(classes: int = 10) -> nn.Sequential:
    """WideResNet-34-10 (Zagoruyko and Komodakis, arXiv 1605.07146)."""
    return _network(16, (160, 320, 640), 5, classes)
