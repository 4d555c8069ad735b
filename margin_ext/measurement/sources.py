"""Models by name, as the command line gives them."""

from __future__ import annotations

from typing import Any

from torch import nn

from margin_ext.import_by_name import call_with_known, import_by_name
from margin_ext.models.authors_models import AUTHORS_MODELS

__all__ = ["model_source"]


def model_source(name: str, **offered: Any) -> nn.Module:
    """A module: one of the authors' models by name, or what module:callable returns.

    Args:
        name: The name.
        **offered: What the callable is called with, where it has parameters of these names.

    Raises:
        ValueError: There is no such model, or the callable returns something else.
    """
    if name in AUTHORS_MODELS:
        return AUTHORS_MODELS[name]()
    if ":" not in name:
        raise ValueError(f"model must be module:callable or one of {', '.join(AUTHORS_MODELS)}")
    build = import_by_name(name)
    model = build
    if callable(build) and not isinstance(build, nn.Module):
        model = call_with_known(build, **offered)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ValueError(f"{name} must give a torch.nn.Module, got {kind}")  # noqa: TRY004
    return model
