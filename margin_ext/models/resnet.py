"""A residual network for small images."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ResidualBlock", "resnet"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input.

    Args:
        given: Channels that come in.
        channels: Channels that go out.
        stride: Stride of the first convolution.
    """

    def __init__(self, given: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(given, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, given, H, W] to [B, channels, H / stride, W / stride]."""
        out: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return out


def resnet(
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    blocks: int = 2,
    width: int = 16,
) -> nn.Sequential:
    """The residual network for CIFAR of He et al. (2016, section 4.2), with 6 * blocks + 2 layers.

    Three stages of 3x3 convolutions, each with half the size and twice the width of the one
    before, and the mean over the image. With GELU in place of ReLU: the margin's gradient goes
    through the second derivative, which is zero almost everywhere in a ReLU network.

    Args:
        shape: Channels, height and width of the images; of any size, meant for 28 x 28 or 32 x 32.
        classes: Number of logits.
        blocks: Residual blocks a stage.
        width: Channels of the first stage.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.GELU(),
    ]
    given = width
    for stage in range(3):
        for block in range(blocks):
            channels = width * 2**stage
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(given, channels, stride))
            given = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes))
