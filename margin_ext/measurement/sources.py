"""Models and data by name, as the command line gives them."""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from margin_ext.data.idx_files import load_mnist
from margin_ext.models.authors_models import AUTHORS_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["data_source", "imported", "model_source"]


def imported(name: str) -> Any:
    """The object that "module:attribute" names; modules of the working folder count.

    Raises:
        ValueError: The name has another form, or there is no such thing.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"expected module:callable, got {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name}: {error}") from error
    try:
        return operator.attrgetter(attribute)(found)
    except AttributeError:
        raise ValueError(f"{module_name} has no {attribute}") from None


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
    build = imported(name)
    model = build
    if callable(build) and not isinstance(build, nn.Module):
        model = build(**_accepted(build, offered))
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ValueError(f"{name} must give a torch.nn.Module, got {kind}")  # noqa: TRY004
    return model


def _accepted(build: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = inspect.signature(build).parameters
    except ValueError:  # builtins have none
        return {}
    return {name: value for name, value in offered.items() if name in known}


def data_source(name: str, *, train: bool = False) -> Any:
    """Data for `measure`: "mnist:FOLDER", a .npz file, "digits", or what module:callable returns.

    An .npz file holds ``inputs`` (or x, images) and ``target`` (or y, labels).

    Raises:
        ValueError, FileNotFoundError: It is missing or does not fit.
    """
    if name.startswith("mnist:"):
        return load_mnist(name.removeprefix("mnist:"), train=train)
    if name.endswith(".npz"):
        return _npz(Path(name))
    if name == "digits":
        return _digits()
    if ":" not in name:
        raise ValueError(
            f'data must be "mnist:FOLDER", "digits", a .npz file or module:callable, got {name!r}'
        )
    made = imported(name)
    return made() if callable(made) else made


def _npz(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no data at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no npz file of plain arrays: {error}") from error
    inputs = next((arrays[k] for k in ("inputs", "x", "images") if k in arrays), None)
    target = next((arrays[k] for k in ("target", "y", "labels") if k in arrays), None)
    if inputs is None or target is None:
        raise ValueError(
            f"{path} must hold inputs (or x, images) and target (or y, labels), "
            f"it holds {', '.join(arrays)}"
        )
    x = torch.from_numpy(inputs)
    # Bytes are pixels.
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    return x, torch.from_numpy(target.astype(np.int64))


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn, which is not installed") from error
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return images, torch.tensor(digits.target, dtype=torch.int64)
