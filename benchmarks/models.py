"""The networks that training steps are timed on: an MLP, a CNN, ResNets with BatchNorm, ViTs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Task:
    """A network and the batch that it is trained on.

    Attributes:
        name: Unique.
        build: Makes the network.
        sample: Shape of one input.
        classes: C.
        batch: B.
        reason: Why it is measured.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    classes: int
    batch: int
    reason: str


def mlp(width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def cnn(width: int, classes: int) -> nn.Module:
    """Three convolutions with GELU: smooth, no normalisation."""
    layers: list[nn.Module] = []
    inside = 3
    for outside in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)]
        inside = outside
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(classes))


class Residual(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1, beside a shortcut."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outside = 4 * width if bottleneck else width
        plan = (
            [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
            if bottleneck
            else [(inside, width, 3, stride), (width, width, 3, 1)]
        )
        layers: list[nn.Module] = []
        for source, to, size, step in plan:
            layers += [
                nn.Conv2d(source, to, size, step, padding=size // 2, bias=False),
                nn.BatchNorm2d(to),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers[:-1])
        same = inside == outside and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
        )
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(
    blocks: Sequence[int], width: int, classes: int, *, bottleneck: bool, large: bool
) -> nn.Module:
    """He et al.'s network; ``large``: the stem for 224 x 224 images."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    if large:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inside = width
    for stage, count in enumerate(blocks):
        for place in range(count):
            stride = 2 if stage > 0 and place == 0 else 1
            block = Residual(inside, width << stage, stride, bottleneck)
            layers.append(block)
            inside = block.outside
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes)]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Self-attention through torch's fused operator, as vision transformers use it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        mixed = self.mix(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(query, key, value)
        return self.out(seen.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


class ViT(nn.Module):
    """A vision transformer that averages its tokens."""

    def __init__(
        self, image: int, patch: int, width: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn((image // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(dim=1))


_MNIST, _CIFAR, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)

CPU_TASKS = (
    Task("mlp", lambda: mlp(1024, 10), _MNIST, 10, 128, "784-1024-1024-10, ReLU: little to do"),
    Task("cnn", lambda: cnn(32, 10), _CIFAR, 10, 64, "3 convolutions, GELU: smooth, no norm"),
    Task(
        "resnet14",
        lambda: resnet((2, 2, 2), 16, 10, bottleneck=False, large=False),
        _CIFAR,
        10,
        64,
        "ReLU, BatchNorm in training mode",
    ),
    Task(
        "vit",
        lambda: ViT(32, 4, 96, 4, 3, 10),
        _CIFAR,
        10,
        64,
        "4 blocks of width 96, fused attention",
    ),
)
CUDA_TASKS = (
    CPU_TASKS[0],
    Task("cnn", lambda: cnn(64, 10), _CIFAR, 10, 128, "3 convolutions, GELU: smooth, no norm"),
    Task(
        "resnet18",
        lambda: resnet((2, 2, 2, 2), 64, 10, bottleneck=False, large=False),
        _CIFAR,
        10,
        128,
        "ResNet-18 for CIFAR",
    ),
    Task(
        "resnet50",
        lambda: resnet((3, 4, 6, 3), 64, 1000, bottleneck=True, large=True),
        _IMAGENET,
        1000,
        64,
        "ResNet-50 for ImageNet",
    ),
    Task(
        "vit_s",
        lambda: ViT(224, 16, 384, 12, 6, 1000),
        _IMAGENET,
        1000,
        64,
        "ViT-S/16 for ImageNet, fused attention",
    ),
)
QUICK_TASKS = (
    Task("mlp", lambda: mlp(8, 10), _MNIST, 10, 4, "smoke test"),
    Task(
        "resnet",
        lambda: resnet((1,), 4, 10, bottleneck=True, large=False),
        (3, 8, 8),
        10,
        4,
        "smoke test",
    ),
    Task("cnn", lambda: cnn(2, 10), (3, 8, 8), 10, 4, "smoke test"),
    Task("vit", lambda: ViT(8, 4, 8, 1, 2, 10), (3, 8, 8), 10, 4, "smoke test"),
)


def tasks(device: str, quick: bool) -> tuple[Task, ...]:
    return QUICK_TASKS if quick else CPU_TASKS if device == "cpu" else CUDA_TASKS
