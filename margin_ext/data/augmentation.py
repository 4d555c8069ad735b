"""Random changes of training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Shifted and mirrored images, from torch's random numbers on the images' device.

    Attributes:
        crop: Images are shifted by up to so many pixels, each way; what comes in is 0.
        flip: Half of the images are mirrored, left to right.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop must be at least 0, got {self.crop}")

    def __bool__(self) -> bool:
        return self.crop > 0 or self.flip

    def __call__(self, images: Tensor) -> Tensor:
        """Changed images [B, C, H, W]."""
        if self.crop:
            images = self._shifted(images)
        if self.flip:
            mirrored = torch.rand(images.shape[0], 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _shifted(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        device = images.device
        padded = pad(images, [self.crop] * 4)
        corner = torch.randint(0, 2 * self.crop + 1, (2, batch, 1), device=device)
        rows = corner[0] + torch.arange(height, device=device)
        columns = corner[1] + torch.arange(width, device=device)
        return padded[
            torch.arange(batch, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
