"""Small networks for small images."""

from __future__ import annotations

from torch import nn

__all__ = ["digits_cnn", "small_cnn"]


def small_cnn(shape: tuple[int, int, int], classes: int = 10) -> nn.Sequential:
    """Two 3x3 convolutions, the second with stride 2, and two linear layers, with GELU.

    GELU and not ReLU: the margin's gradient goes through the network's second derivative, which
    is zero almost everywhere in a ReLU network.

    Args:
        shape: Channels, height and width of the images, at most 32 x 32.
        classes: Number of logits.
    """
    channels, height, width = shape
    # Large images are halved once more, early, where it saves most.
    first = 1 if max(height, width) <= 16 else 2
    rows, columns = (_halved(_halved(side, first), 2) for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=first, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32 * rows * columns, 64),
        nn.GELU(),
        nn.Linear(64, classes),
    )


def digits_cnn() -> nn.Sequential:
    """The network that the demo trains on the 8 x 8 digits."""
    return small_cnn((1, 8, 8))


def _halved(side: int, stride: int) -> int:
    return (side - 1) // stride + 1
