"""MNIST's idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_mnist", "read_idx"]

# Deflate makes of 1032 bytes one at the least.
_LARGEST_RATIO = 1032


def read_idx(path: Path) -> Tensor:
    """Unsigned bytes of an idx file, gzipped or not.

    Not more is unpacked than the header states, so that a small gz file of gigabytes of zeros does
    no harm.

    Raises:
        ValueError: The file is something else, or cut off.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            return _read(stream, path, path.stat().st_size * (_LARGEST_RATIO if packed else 1))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into memory") from error


def _read(stream: IO[bytes] | gzip.GzipFile, path: Path, largest: int) -> Tensor:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes")
    dims = magic[3]
    header = stream.read(4 * dims)
    if len(header) < 4 * dims:
        raise ValueError(f"{path} ends within its header")
    shape = struct.unpack(f">{dims}I", header)
    size = math.prod(shape)
    if size > largest:
        raise ValueError(f"{path} should hold {shape} values, it is too small for them")
    values = np.frombuffer(bytearray(stream.read(size)), np.uint8)
    if values.size != size:
        raise ValueError(f"{path} should hold {shape} values, it holds {values.size}")
    if stream.read(1):
        raise ValueError(f"{path} should hold {shape} values, it holds more")
    return torch.from_numpy(values.reshape(shape))


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
    # Kaggle has a dot where the original has a dash, and a folder around each file.
    dotted = name.replace("-idx", ".idx")
    for inner in (name, dotted, f"{name}/{name}", f"{dotted}/{dotted}", f"{name}/{dotted}"):
        for path in (folder / inner, folder / f"{inner}.gz"):
            if path.exists() and not path.is_dir():
                return path
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz")
