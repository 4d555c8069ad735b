"""Models for training by name, as a command line or a settings file gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.models.named_model import named_model

if TYPE_CHECKING:
    from margin_ext.data.image_data import ImageData

__all__ = ["image_model"]


def image_model(name: str, data: ImageData) -> nn.Module:
    """A model for the data, with weights from torch's random numbers.

    Args:
        name: As `margin_ext.models.named_model` reads it.
        data: It is tried on two images.

    Raises:
        ValueError: There is no such model, or it does not fit the data.
    """
    model = named_model(name, shape=data.shape, classes=data.classes)
    _require_fit(name, model, data)
    return model


def _require_fit(name: str, model: nn.Module, data: ImageData) -> None:
    images = data.train[0][:2]
    given = f"{name} gets images [B, {', '.join(map(str, data.shape))}]"
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{given} and fails: {error}") from error
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(shape, list) or len(shape) != 2 or shape[1] < data.classes:
        raise ValueError(f"{given} and must return logits [B, {data.classes}], got {shape}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{name} has no parameters to train")
