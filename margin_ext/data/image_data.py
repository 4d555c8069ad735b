"""Labelled images in memory, split for training, tuning and reporting."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margin_ext.data.data_source import PARTS, DataError

__all__ = ["ImageData", "Labelled", "data_digest", "without_last"]

Labelled = tuple[Tensor, Tensor]

# Where there are no validation images, the last tenth of the training images are.
_VALIDATION_FRACTION = 10

_TITLES = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class ImageData:
    """Images with labels, in three parts.

    Attributes:
        name: For titles.
        train: Images float32 [N, channels, height, width] and labels int64 [N].
        validation: For choosing settings; never trained on.
        test: For the reported figures.
        classes: Number of classes.
        unit_range: The values lie in [0, 1] by construction: bytes divided by 255, for instance.

    Raises:
        DataError: The parts do not fit together.

    >>> part = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    >>> ImageData("noise", part, part, part, classes=3).shape
    (1, 4, 4)
    """

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled
    classes: int = 10
    unit_range: bool = False

    def __post_init__(self) -> None:
        for part in PARTS:
            images, labels = getattr(self, part)
            title = f"the {_TITLES[part]} images of {self.name}"
            if images.dim() != 4 or labels.dim() != 1:
                raise DataError(
                    f"{title} must be [N, channels, height, width] with labels [N], got "
                    f"{list(images.shape)} and {list(labels.shape)}"
                )
            if images.dtype != torch.float32 or labels.dtype != torch.int64:
                raise DataError(
                    f"{title} must be float32 with labels int64, got {images.dtype} and "
                    f"{labels.dtype}"
                )
            if len(images) != len(labels) or not len(labels):
                raise DataError(f"{title} are {len(images)}, with {len(labels)} labels")
            if images.shape[1:] != self.train[0].shape[1:]:
                raise DataError(
                    f"{title} are {list(images.shape[1:])}, the training images "
                    f"{list(self.train[0].shape[1:])}"
                )
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= self.classes:
                raise DataError(
                    f"the {_TITLES[part]} labels of {self.name} must lie in 0 to "
                    f"{self.classes - 1}, they go from {lowest} to {highest}"
                )

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

    def require_range(self, value_range: tuple[float, float]) -> None:
        """Raise DataError unless all images are finite and lie in the range."""
        low, high = value_range
        if self.unit_range:
            if (low, high) != (0.0, 1.0):
                raise DataError(f"the images of {self.name} lie in 0 to 1: leave out --data-range")
            return
        # A rounding of the normalisation is no fault.
        slack = 1e-5 * (high - low)
        for part in PARTS:
            images = getattr(self, part)[0]
            if not bool(images.isfinite().all()):
                raise DataError(f"the {_TITLES[part]} images of {self.name} hold NaN or infinity")
            found = float(images.min()), float(images.max())
            if found[0] < low - slack or found[1] > high + slack:
                raise DataError(
                    f"the {_TITLES[part]} images of {self.name} lie in [{found[0]:g}, "
                    f"{found[1]:g}], outside [{low:g}, {high:g}]: say with --data-range what "
                    "values they can have"
                )


def _first(part: Labelled, count: int | None) -> Labelled:
    return part[0][:count], part[1][:count]


def without_last(train: Labelled, count: int | None = None) -> tuple[Labelled, Labelled]:
    """Training images without the last ones, and the last ones for validation.

    Args:
        train: All training images and their labels.
        count: How many to set aside, but at most half; None: a tenth.

    Raises:
        DataError: There are too few images to set some aside.
    """
    images, labels = train
    last = len(labels) // _VALIDATION_FRACTION if count is None else min(count, len(labels) // 2)
    if not last:
        raise DataError(f"{len(labels)} training images are too few to set some aside")
    return (images[:-last], labels[:-last]), (images[-last:], labels[-last:])


def data_digest(part: Labelled) -> str:
    """Hash of images and labels, to recognise them wherever their files are."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in part:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
