"""Data and models for training by name, as a command line or a settings file gives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from margin_ext.data.image_data import DataError, digits, mnist
from margin_ext.data.image_files import cifar10, npz
from margin_ext.models.authors_models import AUTHORS_MODELS
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.models.named_model import named_model
from margin_ext.models.resnet import resnet
from margin_ext.models.small_cnn import small_cnn

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin_ext.data.image_data import ImageData

__all__ = ["DATA", "MODELS", "image_data", "image_model"]

DATA: Final = ("digits", "mnist", "cifar10", "npz")
# Functions of the images' shape and the number of classes.
MODELS: Final[dict[str, Callable[..., nn.Module]]] = {"small_cnn": small_cnn, "resnet": resnet}


def image_data(
    name: str, folder: str | Path | None, value_range: tuple[float, float] = (0.0, 1.0)
) -> ImageData:
    """The data set of a name.

    Args:
        name: One of `DATA`.
        folder: Where its files are; the digits have none.
        value_range: What the floating values of an npz file must lie in.

    Raises:
        DataError: It is unknown, missing or damaged.
    """
    if name not in DATA:
        raise DataError(f"--data must be one of {', '.join(DATA)}, got {name!r}")
    if value_range != (0.0, 1.0) and name != "npz":
        raise DataError(f"the values of {name} lie in 0 to 1: leave out --data-range")
    if name == "digits":
        return digits()
    if folder is None:
        raise DataError(f"--data {name} needs --data-dir, where its files are")
    if name == "mnist":
        return mnist(folder)
    return cifar10(folder) if name == "cifar10" else npz(folder, value_range)


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
        model = named_model(name, shape=data.shape, classes=data.classes)
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
