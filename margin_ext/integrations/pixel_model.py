"""``PixelModel``: a model of normalised inputs as attack libraries want it, on [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from margin_ext.input_std import checked_std

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PixelModel"]


class PixelModel(nn.Module):
    """Takes pixels, normalises them as the loader does, and gives the model's logits.

    Attack libraries (AutoAttack, adv-lib, torchattacks) search in [0, 1] and know of no
    normalisation. Their distances are then pixel distances, which are the margins that
    ``input_std=`` gives here. A model whose inputs are not normalised needs none of this.

    Args:
        model: Maps normalised inputs [B, C, ...] to logits.
        mean: Subtracted, a number or one a channel.
        std: Divided by, a number or one a channel.

    Example:
        >>> from margin_ext.integrations.pixel_model import PixelModel
        >>> model = PixelModel(nn.Flatten(), mean=0.5, std=0.25)
        >>> pixels = torch.tensor([[[1.0]]])
        >>> model(pixels)
        tensor([[2.]])
        >>> model.to_pixels(model.normalised(pixels))
        tensor([[[1.]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: float | Sequence[float] | Tensor,
        std: float | Sequence[float] | Tensor,
    ) -> None:
        super().__init__()
        checked = checked_std(std)
        if checked is None:
            raise ValueError("std must be a number or one a channel, got None")
        self.model = model
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", checked, persistent=False)
        if self.mean.dim() > 1 or not bool(self.mean.isfinite().all()):
            raise ValueError(f"mean must be a finite number or one a channel, got {mean}")

    def normalised(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std."""
        return (pixels - _by_channel(self.mean, pixels)) / _by_channel(self.std, pixels)

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """inputs * std + mean: what a loader's batch was before it was normalised."""
        return inputs * _by_channel(self.std, inputs) + _by_channel(self.mean, inputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of pixels [B, C, ...]."""
        logits: Tensor = self.model(self.normalised(pixels))
        return logits


def _by_channel(values: Tensor, inputs: Tensor) -> Tensor:
    """A number, or one a channel, in a shape and type that broadcast over inputs [B, C, ...]."""
    if values.numel() == 1:
        return values.reshape(()).to(inputs.dtype)
    if values.shape[0] != inputs.shape[1]:
        raise ValueError(
            f"mean and std have {values.shape[0]} channels, and the inputs have {inputs.shape[1]}"
        )
    return values.to(inputs.dtype).reshape(1, -1, *[1] * (inputs.dim() - 2))
