"""CIFAR-10 from its binary version, or from an npz file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from margin_ext.data.data_source import DataError, DataSource, Part, register_data_source

if TYPE_CHECKING:
    from margin_ext.data.image_data import ImageData, Labelled

__all__ = ["Cifar10"]

_RECORD: Final = 1 + 3 * 32 * 32
_TRAIN: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST: Final = ("test_batch.bin",)


@register_data_source
class Cifar10(DataSource):
    """CIFAR-10 (Krizhevsky 2009); the last tenth of the training images is for validation.

    The place holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the folder
    cifar-10-batches-bin with them; or it is or holds one npz file. The pickled version is not read,
    because pickles can run code.
    """

    name = "cifar10"
    summary = "CIFAR-10's binary version (data_batch_1.bin ... test_batch.bin), or an npz file"
    place = "FOLDER"

    def load(self, place: str) -> ImageData:
        """All parts; DataError where a file is missing or damaged."""
        from margin_ext.data.image_data import ImageData, without_last

        folder = _binary_folder(Path(place))
        if folder is None:
            return _from_npz(place)
        train, validation = without_last(_part(folder, _TRAIN))
        return ImageData("CIFAR-10", train, validation, _part(folder, _TEST), unit_range=True)

    def load_part(self, place: str, part: Part) -> Labelled:
        """One part. For the test images the training files are not read."""
        folder = _binary_folder(Path(place))
        if part == "test" and folder is not None:
            return _part(folder, _TEST)
        labelled: Labelled = getattr(self.load(place), part)
        return labelled


def _binary_folder(place: Path) -> Path | None:
    folders = (place, place / "cifar-10-batches-bin")
    return next((folder for folder in folders if (folder / _TEST[0]).exists()), None)


def _from_npz(place: str) -> ImageData:
    from margin_ext.data.sources.npz import Npz

    path = Path(place)
    if not (path.is_file() or any(path.glob("*.npz"))):
        raise DataError(
            f"{place} holds no CIFAR-10: it must hold data_batch_1.bin to data_batch_5.bin and "
            "test_batch.bin (its binary version, since pickled Python objects could run code), or "
            "an npz file"
        )
    data = Npz().load(place)
    if data.shape != (3, 32, 32) or data.classes != 10:
        raise DataError(
            f"{place} holds images {list(data.shape)} of {data.classes} classes, not CIFAR-10's "
            "[3, 32, 32] of 10: for other images, --data npz"
        )
    return data


def _part(folder: Path, names: tuple[str, ...]) -> Labelled:
    import numpy as np
    import torch

    blocks = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        try:
            raw = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if not raw.size or raw.size % _RECORD:
            raise DataError(
                f"{path} is damaged: {raw.size} bytes are no whole number of images of "
                f"{_RECORD} bytes"
            )
        blocks.append(raw.reshape(-1, _RECORD))
    records = np.concatenate(blocks)
    labels = records[:, 0].astype(np.int64)
    if int(labels.max()) > 9:
        raise DataError(f"the labels in {folder} go up to {int(labels.max())}, not 9")
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images.float() / 255, torch.from_numpy(labels)
