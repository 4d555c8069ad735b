"""CIFAR-10's binary files, and images of any kind in an npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from margin_ext.data.image_data import DataError, ImageData

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from margin_ext.data.image_data import Labelled

__all__ = ["cifar10", "npz"]

_PARTS: Final = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}
# Where there are no validation images, the last so many of the training images are.
_VALIDATION_SHARE = 10

_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = ("test_batch.bin",)


def npz(path: str | Path, value_range: tuple[float, float] = (0.0, 1.0)) -> ImageData:
    """Images of one npz file.

    It holds ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and, where they
    are not to be the last tenth of the training images, ``validation_images`` (or ``val_images``)
    and their labels. Images are [N, height, width], [N, channels, height, width] or, with 1 or 3
    channels, [N, height, width, channels]; bytes are divided by 255. The number of classes is that
    of ``class_names``, or else one more than the largest label.

    Args:
        path: The file, or a folder that holds one npz file.
        value_range: What values of a floating type must lie in.

    Raises:
        DataError: It is missing, damaged, or holds something else.
    """
    path = _npz_file(Path(path))
    try:
        # Opened here: numpy would leave a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole npz file of plain arrays: {error}") from error
    parts = {part: _npz_part(path, arrays, part, value_range) for part in _PARTS}
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    if train is None or test is None:
        raise DataError(
            f"{path} must hold train_images, train_labels, test_images and test_labels, it holds "
            f"{', '.join(arrays) or 'nothing'}"
        )
    if validation is None:
        train, validation = _without_last(path, train)
    all_parts = {"training": train, "validation": validation, "test": test}
    for name, (images, _) in all_parts.items():
        if images.shape[1:] != train[0].shape[1:]:
            raise DataError(
                f"the {name} images in {path} are {list(images.shape[1:])}, the training images "
                f"{list(train[0].shape[1:])}"
            )
    classes = 1 + max(int(labels.max()) for _, labels in all_parts.values())
    if "class_names" in arrays:
        names = arrays["class_names"].size
        if classes > names:
            raise DataError(f"the labels in {path} go up to {classes - 1}, for {names} class_names")
        classes = names
    return ImageData(path.stem, train, validation, test, classes)


def _npz_file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.npz"))
        if len(found) != 1:
            raise DataError(
                f"--data-dir must be an npz file or hold one; {path} holds "
                f"{', '.join(file.name for file in found) or 'none'}"
            )
        return found[0]
    if not path.is_file():
        raise DataError(f"--data-dir must be an npz file or hold one; there is nothing at {path}")
    return path


def _npz_part(
    path: Path, arrays: Mapping[str, NDArray[Any]], part: str, value_range: tuple[float, float]
) -> Labelled | None:
    prefix = next((p for p in _PARTS[part] if f"{p}_images" in arrays), None)
    if prefix is None or f"{prefix}_labels" not in arrays:
        return None
    images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    where = f"{prefix}_images in {path}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{prefix}_labels in {path} must be whole numbers [N], got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{where} must be [N, height, width] or [N, channels, height, width], got "
            f"{list(images.shape)}"
        )
    if len(images) != len(labels):
        raise DataError(f"{where} are {len(images)}, with {len(labels)} labels")
    if int(labels.min()) < 0:
        raise DataError(f"{prefix}_labels in {path} go down to {int(labels.min())}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    return _pixels(images, where, value_range), torch.from_numpy(labels.astype(np.int64))


def _pixels(images: NDArray[Any], where: str, value_range: tuple[float, float]) -> torch.Tensor:
    low, high = value_range
    if images.dtype == np.uint8:
        if value_range != (0.0, 1.0):
            raise DataError(f"{where} are bytes, which become 0 to 1: leave out --data-range")
        return torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where} must be bytes or of a floating type, got {images.dtype}")
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    if not bool(pixels.isfinite().all()):
        raise DataError(f"{where} hold NaN or infinity")
    found = float(pixels.min()), float(pixels.max())
    # A rounding of the normalisation is no fault.
    slack = 1e-5 * (high - low)
    if found[0] < low - slack or found[1] > high + slack:
        raise DataError(
            f"{where} lie in [{found[0]:g}, {found[1]:g}], outside [{low:g}, {high:g}]: say with "
            "--data-range what values they can have"
        )
    return pixels


def _without_last(path: Path, train: Labelled) -> tuple[Labelled, Labelled]:
    """Training and validation images."""
    images, labels = train
    kept = len(labels) - len(labels) // _VALIDATION_SHARE
    if kept == len(labels):
        raise DataError(f"{path} holds {kept} training images: too few to set some aside")
    return (images[:kept], labels[:kept]), (images[kept:], labels[kept:])


def cifar10(folder: str | Path) -> ImageData:
    """CIFAR-10 from its binary version, or from an npz file as `npz` reads it.

    Of the training images the last tenth is for validation.

    Args:
        folder: Holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the folder
            cifar-10-batches-bin with them, or one npz file.

    Raises:
        DataError: A file is missing or damaged.
    """
    folder = Path(folder)
    places = [place for place in (folder, folder / "cifar-10-batches-bin") if place.is_dir()]
    place = next((p for p in places if (p / _CIFAR_TEST[0]).exists()), None)
    if place is None:
        if folder.is_file() or (folder.is_dir() and any(folder.glob("*.npz"))):
            return _as_cifar(npz(folder), folder)
        raise DataError(
            f"{folder} holds no CIFAR-10: --data-dir must hold data_batch_1.bin to "
            "data_batch_5.bin and test_batch.bin (its binary version, since pickled Python "
            "objects could run code), or an npz file"
        )
    train, validation = _without_last(place, _cifar_part(place, _CIFAR_TRAIN))
    return ImageData("CIFAR-10", train, validation, _cifar_part(place, _CIFAR_TEST))


def _as_cifar(data: ImageData, folder: Path) -> ImageData:
    if data.shape != (3, 32, 32) or data.classes != 10:
        raise DataError(
            f"{folder} holds images {list(data.shape)} of {data.classes} classes, not CIFAR-10's "
            "[3, 32, 32] of 10: for other images, --data npz"
        )
    return data


def _cifar_part(folder: Path, names: tuple[str, ...]) -> Labelled:
    blocks = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        raw = np.fromfile(path, dtype=np.uint8)
        if not raw.size or raw.size % _CIFAR_RECORD:
            raise DataError(
                f"{path} is damaged: {raw.size} bytes are no whole number of images of "
                f"{_CIFAR_RECORD} bytes"
            )
        blocks.append(raw.reshape(-1, _CIFAR_RECORD))
    records = np.concatenate(blocks)
    labels = records[:, 0].astype(np.int64)
    if int(labels.max()) > 9:
        raise DataError(f"the labels in {folder} go up to {int(labels.max())}, not 9")
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return _pixels(images, str(folder), (0.0, 1.0)), torch.from_numpy(labels)
