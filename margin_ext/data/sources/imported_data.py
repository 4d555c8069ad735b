"""Data from a Python function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from margin_ext.data.data_source import PARTS, DataError, DataSource, Part, register_data_source
from margin_ext.import_by_name import call_with_known, import_by_name

if TYPE_CHECKING:
    from margin_ext.data.image_data import ImageData

__all__ = ["ImportedData"]


@register_data_source
class ImportedData(DataSource):
    """What a callable of the working folder or of an installed package returns.

    To measure, it returns a pair of tensors (inputs, target), a Dataset or a DataLoader. To train,
    it returns an `ImageData` or a mapping from "train", "test" and perhaps "validation" to such
    pairs; both can be measured too. It gets the wanted ``part`` if it has a parameter of this name.
    """

    name = "module:callable"
    summary = "a Python function that returns tensors, a Dataset or a DataLoader"
    place = "CALLABLE"

    def load(self, place: str) -> ImageData:
        """All parts; DataError where the callable returns something else."""
        from margin_ext.data.image_data import ImageData, without_last

        made = _made(place, None)
        if isinstance(made, ImageData):
            return made
        if not isinstance(made, Mapping) or not {"train", "test"} <= made.keys():
            raise DataError(
                f"to train, {place} must return an ImageData or a mapping with train, test and "
                f"perhaps validation, got {_kind(made)}"
            )
        train, test = made["train"], made["test"]
        validation = made.get("validation")
        if validation is None:
            train, validation = without_last(train)
        classes = 1 + max(int(target.max()) for _, target in (train, validation, test))
        return ImageData(place, train, validation, test, classes)

    def load_part(self, place: str, part: Part) -> Any:
        """What the callable returns, or its part of this name."""
        from margin_ext.data.image_data import ImageData

        made = _made(place, part)
        if isinstance(made, ImageData):
            return getattr(made, part)
        if isinstance(made, Mapping) and made.keys() & set(PARTS):
            if part not in made:
                raise DataError(f"{place} returns no {part}, only {_kind(made)}")
            return made[part]
        return made


def _made(place: str, part: Part | None) -> Any:
    try:
        found = import_by_name(place)
    except ValueError as error:
        raise DataError(str(error)) from error
    return call_with_known(found, part=part) if callable(found) else found


def _kind(made: Any) -> str:
    return f"{', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
