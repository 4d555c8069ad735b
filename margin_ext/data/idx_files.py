"""MNIST's idx files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_mnist", "read_idx"]


def read_idx(path: Path) -> Tensor:
    """Unsigned bytes of an idx file, gzipped or not.

    Raises:
        ValueError: The file is something else, or cut off.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes")
    dims = raw[3]
    if len(raw) < 4 + 4 * dims:
        raise ValueError(f"{path} ends within its header")
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} should hold {shape} values, it holds {values.size}")
    return torch.from_numpy(values.reshape(shape).copy())


def load_mnist(folder: str | Path, *, train: bool = False) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], float32 [N, 1, 28, 28], and labels int64 [N], in the canonical order.

    Args:
        folder: Holds the idx files, gzipped or not.
        train: The training set; otherwise the test set.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged.
    """
    name = "train" if train else "t10k"
    images = read_idx(_existing(Path(folder), f"{name}-images-idx3-ubyte"))
    labels = read_idx(_existing(Path(folder), f"{name}-labels-idx1-ubyte"))
    return images.unsqueeze(1).float() / 255, labels.long()


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz")
