"""Models for training by name, as a command line or a settings file gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from margin_ext.measurement.sources import model_source
from margin_ext.models.authors_models import AUTHORS_MODELS
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.models.resnet import resnet
from margin_ext.models.small_cnn import small_cnn

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin_ext.data.image_data import ImageData

__all__ = ["MODELS", "image_model"]

# Functions of the images' shape and the number of classes.
MODELS: Final[dict[str, Callable[..., nn.Module]]] = {"small_cnn": small_cnn, "resnet": resnet}


def image_model(name: str, data: ImageData) -> nn.Module:
    """A model for the data, with weights from torch's random numbers.

    Args:
        name: One of `MODELS`, of the authors' models, or module:callable; the callable gets the
            images' ``shape`` and the number of ``classes`` if it has parameters of these names.
        data: It is tried on two images.

    Raises:
        ValueError: There is no such model, or it does not fit the data.
    """
    if name in MODELS:
        model = MODELS[name](data.shape, data.classes)
    elif name in AUTHORS_MODELS or ":" in name:
        model = model_source(name, shape=data.shape, classes=data.classes)
    else:
        known = ", ".join((*MODELS, *AUTHORS_MODELS))
        raise ValueError(f"model must be module:callable or one of {known}, got {name!r}")
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
