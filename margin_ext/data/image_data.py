"""Labelled images in memory, split for training, tuning and reporting.

Files of other forms than MNIST's: `margin_ext.data.image_files`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from margin_ext.data.idx_files import load_mnist

__all__ = ["DataError", "ImageData", "data_digest", "digits", "mnist"]

Labelled = tuple[Tensor, Tensor]

# The split must be the same whatever the training's seed: what was tuned on stays out of the test.
_SPLIT_SEED = 0
_DIGITS_TRAIN, _DIGITS_VALIDATION = 1000, 297
_MNIST_VALIDATION = 5000


class DataError(Exception):
    """The data are missing, damaged or do not fit together; the message says what to do."""


@dataclass(frozen=True)
class ImageData:
    """Images with labels; their values lie in [0, 1], or in the range that a file was read with.

    Attributes:
        name: For titles.
        train: Images float32 [N, channels, height, width] and labels int64 [N].
        validation: For choosing settings; never trained on.
        test: For the reported figures.
        classes: Number of classes.
    """

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled
    classes: int = 10

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width

    def limited(self, train: int | None, held_out: int | None) -> ImageData:
        """Only the first images of each part; None: all."""
        return replace(
            self,
            train=_first(self.train, train),
            validation=_first(self.validation, held_out),
            test=_first(self.test, held_out),
        )


def _first(part: Labelled, count: int | None) -> Labelled:
    return part[0][:count], part[1][:count]


def data_digest(part: Labelled) -> str:
    """Hash of images and labels, to recognise them wherever their files are."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in part:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def digits() -> ImageData:
    """The 1797 handwritten digits (8 x 8) that come with scikit-learn: 1000, 297 and 500.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'margin_ext[demo]'"
        ) from error
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    train, validation, test = (
        (images[part], labels[part])
        for part in order.tensor_split([_DIGITS_TRAIN, _DIGITS_TRAIN + _DIGITS_VALIDATION])
    )
    return ImageData("scikit-learn digits", train, validation, test)


def mnist(folder: str | Path) -> ImageData:
    """MNIST from its four idx files, gzipped or not: 55,000, 5,000 and 10,000.

    Raises:
        DataError: A file is missing or damaged.
    """
    images, labels = _mnist_part(folder, train=True)
    kept = max(len(labels) - _MNIST_VALIDATION, len(labels) // 2)
    return ImageData(
        "MNIST",
        (images[:kept], labels[:kept]),
        (images[kept:], labels[kept:]),
        _mnist_part(folder, train=False),
    )


def _mnist_part(folder: str | Path, *, train: bool) -> Labelled:
    part = "training" if train else "test"
    try:
        images, labels = load_mnist(folder, train=train)
    except FileNotFoundError as error:
        raise DataError(
            f"{error}: --data-dir must hold MNIST's four idx files "
            "(train-images-idx3-ubyte and so on, gzipped or not)"
        ) from error
    except (OSError, ValueError, zlib.error, struct.error) as error:
        raise DataError(f"the {part} files in {folder} are damaged: {error}") from error
    if images.dim() != 4 or labels.dim() != 1:
        raise DataError(f"the {part} files in {folder} hold no images with labels")
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"the {part} files in {folder} do not fit together: {len(images)} images, "
            f"{len(labels)} labels"
        )
    if int(labels.max()) > 9:
        raise DataError(f"the {part} labels in {folder} go up to {int(labels.max())}, not 9")
    return images, labels
