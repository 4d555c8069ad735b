"""MNIST from its idx files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.data.data_source import DataError, DataSource, Part, register_data_source

if TYPE_CHECKING:
    from margin_ext.data.image_data import ImageData, Labelled

__all__ = ["Mnist"]

_VALIDATION = 5000


@register_data_source
class Mnist(DataSource):
    """MNIST (LeCun et al. 1998): 55,000 images to train on, 5000 for validation, 10,000 to test."""

    name = "mnist"
    summary = "MNIST's four idx files, gzipped or not; the last 5000 images are for validation"
    place = "FOLDER"
    radii = {2: (0.5, 1.0, 2.0), "inf": (0.1, 0.2, 0.3)}  # noqa: RUF012

    def load(self, place: str) -> ImageData:
        """All parts; DataError where a file is missing or damaged."""
        from margin_ext.data.image_data import ImageData, without_last

        train, validation = without_last(_part(place, train=True), _VALIDATION)
        return ImageData("MNIST", train, validation, _part(place, train=False), unit_range=True)

    def load_part(self, place: str, part: Part) -> Labelled:
        """One part. For the test images no other files are read."""
        if part == "test":
            return _part(place, train=False)
        labelled: Labelled = getattr(self.load(place), part)
        return labelled


def _part(folder: str, *, train: bool) -> Labelled:
    from margin_ext.data.idx_files import load_mnist

    title = "training" if train else "test"
    try:
        images, labels = load_mnist(folder, train=train)
    except FileNotFoundError as error:
        raise DataError(
            f"{error}: the folder must hold MNIST's four idx files (train-images-idx3-ubyte and so "
            "on, gzipped or not)"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"the {title} files in {folder} are damaged: {error}") from error
    if images.dim() != 4 or labels.dim() != 1:
        raise DataError(f"the {title} files in {folder} hold no images with labels")
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"the {title} files in {folder} do not fit together: {len(images)} images, "
            f"{len(labels)} labels"
        )
    if int(labels.max()) > 9:
        raise DataError(f"the {title} labels in {folder} go up to {int(labels.max())}, not 9")
    return images, labels
