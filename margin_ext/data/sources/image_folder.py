"""Images in folders, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from margin_ext.data.data_source import DataError, DataSource, Part, register_data_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from margin_ext.data.image_data import ImageData, Labelled

__all__ = ["ImageFolder"]

_SUFFIXES: Final = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_NAMES: Final[dict[Part, tuple[str, ...]]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


@register_data_source
class ImageFolder(DataSource):
    """FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE, as torchvision's ImageFolder has it.

    If there is no folder ``validation`` (or ``val``), every tenth training image is for validation.
    A folder to measure may be FOLDER/CLASS/IMAGE alone. Classes are numbered in alphabetical order.
    All images must have the same size. They are greyscale if all files are, otherwise RGB.
    """

    name = "images"
    summary = "folders train and test, with a folder of images for each class (needs Pillow)"
    place = "FOLDER"

    def load(self, place: str) -> ImageData:
        """All parts; DataError where a folder is missing or an image cannot be read."""
        from margin_ext.data.image_data import ImageData

        folders = {part: _folder(Path(place), part) for part in _NAMES}
        train, test = folders["train"], folders["test"]
        if train is None or test is None:
            raise DataError(
                f"{place} must hold folders train and test, with a folder of images for each class"
            )
        classes = _classes(train)
        parts = {p: _labelled(f, classes) for p, f in folders.items() if f is not None}
        if "validation" not in parts:
            # The files are sorted by class, so that the last ones would be of one class.
            images, labels = parts["train"]
            if len(labels) < 2:
                raise DataError(f"{train} holds too few images to set some aside")
            held = slice(9, None, 10) if len(labels) >= 10 else slice(1, None, 2)
            parts["validation"] = images[held], labels[held]
            kept = labels.new_ones(len(labels)).bool()
            kept[held] = False
            parts["train"] = images[kept], labels[kept]
        return ImageData(str(place), classes=len(classes), unit_range=True, **parts)

    def load_part(self, place: str, part: Part) -> Labelled:
        """One part, or all images of a folder that holds the classes themselves."""
        if all(_folder(Path(place), name) is None for name in _NAMES):
            return _labelled(Path(place), _classes(Path(place)))
        labelled: Labelled = getattr(self.load(place), part)
        return labelled


def _folder(place: Path, part: Part) -> Path | None:
    return next((place / name for name in _NAMES[part] if (place / name).is_dir()), None)


def _classes(folder: Path) -> list[str]:
    names = sorted(f.name for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise DataError(f"{folder} must hold a folder for each of at least 2 classes; got {found}")
    return names


def _labelled(folder: Path, classes: list[str]) -> Labelled:
    import numpy as np
    import torch

    unknown = set(_classes(folder)) - set(classes)
    if unknown:
        raise DataError(f"{folder} has classes that train has not: {', '.join(sorted(unknown))}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(f for f in (folder / name).glob("*") if f.suffix.lower() in _SUFFIXES)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{folder} holds no images ({', '.join(_SUFFIXES)})")
    arrays = [_pixels(path) for path in paths]
    color = any(array.ndim == 3 for array in arrays)
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(
                f"{path} has {array.shape[1]} x {array.shape[0]} pixels, {paths[0]} "
                f"{arrays[0].shape[1]} x {arrays[0].shape[0]}: all images must have the same size"
            )
    whole = [a if a.ndim == 3 or not color else np.repeat(a[:, :, None], 3, 2) for a in arrays]
    images = torch.from_numpy(np.stack(whole)).float() / 255
    images = images.permute(0, 3, 1, 2).contiguous() if color else images.unsqueeze(1)
    return images, torch.tensor(labels)


def _pixels(path: Path) -> NDArray[np.uint8]:
    import numpy as np

    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("image files need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "LA")
            return np.asarray(image.convert("L" if grey else "RGB"))
    # Pillow raises errors of many kinds for damaged files, its decompression bomb among them.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no image that can be read: {reason}") from error
