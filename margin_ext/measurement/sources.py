"""Data by name, as the command line gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.data.idx_files import load_mnist
from margin_ext.imported import imported

__all__ = ["data_source"]


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
