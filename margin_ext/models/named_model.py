"""Models by name, as a command line or a settings file gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from margin_ext.import_by_name import call_with_known, import_by_name
from margin_ext.models.authors_models import AUTHORS_MODELS
from margin_ext.models.resnet import resnet
from margin_ext.models.small_cnn import small_cnn

__all__ = ["model_names", "named_model", "register_model"]

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "resnet": resnet,
    **AUTHORS_MODELS,
}


def register_model(name: str, build: Callable[..., nn.Module]) -> None:
    """Add a model that training and measuring then know by its name.

    Args:
        name: Without a colon.
        build: Returns the module. It gets the samples' ``shape`` and the number of ``classes``
            where it has parameters of these names.

    Raises:
        ValueError: The name is taken, or holds a colon.

    Example:
        >>> register_model("two_layers", lambda shape, classes: nn.Sequential(
        ...     nn.Flatten(), nn.LazyLinear(16), nn.GELU(), nn.Linear(16, classes)))
        >>> named_model("two_layers", shape=(1, 8, 8), classes=10)[3]
        Linear(in_features=16, out_features=10, bias=True)
    """
    if name in _MODELS or ":" in name:
        raise ValueError(f"a model's name must be new and hold no colon, got {name!r}")
    _MODELS[name] = build


def model_names() -> tuple[str, ...]:
    """Every registered name.

    Example:
        >>> model_names()[:2]
        ('small_cnn', 'resnet')
    """
    return tuple(_MODELS)


def named_model(name: str, **offered: Any) -> nn.Module:
    """The model of a name, with weights from torch's random numbers.

    Args:
        name: A registered name, or "module:callable" for a function that returns a module, or for
            the module itself.
        **offered: What the builder is called with where it has parameters of these names:
            ``shape`` of a sample and the number of ``classes``.

    Raises:
        ValueError: There is no such model, or it is something else.

    Example:
        >>> model = named_model("small_cnn", shape=(1, 28, 28), classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    offered = {key: value for key, value in offered.items() if value is not None}
    if name in _MODELS:
        build: Any = _MODELS[name]
    elif ":" in name:
        build = import_by_name(name)
    else:
        known = ", ".join(_MODELS)
        raise ValueError(f"model must be module:callable or one of {known}, got {name!r}")
    model = build
    if callable(build) and not isinstance(build, nn.Module):
        try:
            model = call_with_known(build, **offered)
        # Whatever the builder's code raises.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} could not be built: {reason}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ValueError(f"{name} must give a torch.nn.Module, got {kind}")  # noqa: TRY004
    return model
