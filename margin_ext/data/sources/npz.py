"""Arrays in an npz file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from margin_ext.data.data_source import DataError, DataSource, Part, register_data_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from margin_ext.data.image_data import ImageData, Labelled

__all__ = ["Npz"]

# How the keys of a part may begin, and the names that inputs and targets had in earlier versions.
_PREFIXES: Final[Mapping[Part, tuple[str, ...]]] = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}
_INPUTS: Final = ("inputs", "images", "x")
_TARGET: Final = ("target", "labels", "y")


@register_data_source
class Npz(DataSource):
    """One npz file, with ``inputs`` and ``target`` for each part.

    Its keys are ``train_inputs``, ``train_target``, ``test_inputs``, ``test_target`` and, if the
    last tenth of the training data is not to serve for validation, ``validation_inputs`` and
    ``validation_target``. A file to measure may hold ``inputs`` and ``target`` alone. The number of
    classes is that of ``class_names`` if the file has this key, or else the largest label plus 1.

    Images are [N, height, width], [N, channels, height, width] or, with 1 or 3 channels, [N,
    height, width, channels]; bytes are divided by 255.
    """

    name = "npz"
    summary = "an npz file with train_inputs, train_target, test_inputs, test_target"
    place = "FILE"
    suffix = ".npz"

    def load(self, place: str) -> ImageData:
        """All parts; DataError where the file is missing, damaged, or lacks a part."""
        file = _File.read(place)
        return file.image_data()

    def load_part(self, place: str, part: Part) -> Labelled:
        """One part, or the inputs and targets of a file that has only one."""
        file = _File.read(place)
        single = file.pair(None)
        if single is not None:
            return file.single(*single)
        labelled: Labelled = getattr(file.image_data(), part)
        return labelled


@dataclass(frozen=True)
class _File:
    """The arrays of a file, and its path for messages."""

    path: Path
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, place: str) -> _File:
        from margin_ext.data.npz_file import read_npz

        path = Path(place)
        if path.is_dir():
            found = sorted(path.glob("*.npz"))
            if len(found) != 1:
                names = ", ".join(file.name for file in found) or "none"
                raise DataError(f"{path} must be an npz file or hold one; it holds {names}")
            path = found[0]
        try:
            return cls(path, read_npz(path))
        except (OSError, ValueError) as error:
            raise DataError(str(error)) from error

    def pair(self, part: Part | None) -> tuple[str, str] | None:
        """The keys of a part's inputs and targets; of the only part for None."""
        for prefix in ("",) if part is None else [f"{word}_" for word in _PREFIXES[part]]:
            inputs = next((prefix + k for k in _INPUTS if prefix + k in self.arrays), None)
            target = next((prefix + k for k in _TARGET if prefix + k in self.arrays), None)
            if inputs is not None and target is not None:
                self._tell_of_old_keys(inputs, target, prefix)
                return inputs, target
        return None

    def _tell_of_old_keys(self, inputs: str, target: str, prefix: str) -> None:
        old = [key for key in (inputs, target) if key not in (prefix + "inputs", prefix + "target")]
        if old:
            warnings.warn(
                f"{self.path} has the old keys {', '.join(old)}: they are read, but now they are "
                f"called {prefix}inputs and {prefix}target",
                FutureWarning,
                stacklevel=6,
            )

    def image_data(self) -> ImageData:
        from margin_ext.data.image_data import ImageData, without_last

        keys = {part: self.pair(part) for part in _PREFIXES}
        if keys["train"] is None or keys["test"] is None:
            raise DataError(
                f"{self.path} must hold train_inputs, train_target, test_inputs and test_target, "
                f"it holds {', '.join(self.arrays) or 'nothing'}"
            )
        parts = {part: self._images(*pair) for part, pair in keys.items() if pair is not None}
        try:
            if "validation" not in parts:
                parts["train"], parts["validation"] = without_last(parts["train"])
            return ImageData(
                str(self.path),
                classes=self._classes(parts),
                unit_range=all(
                    self.arrays[pair[0]].dtype == "uint8" for pair in keys.values() if pair
                ),
                **parts,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def single(self, inputs: str, target: str) -> Labelled:
        """Inputs [N, ...] of any shape, in the precision that they have."""
        self._check_target(inputs, target)
        return self._pixels(inputs), self._labels(target)

    def _images(self, inputs: str, target: str) -> Labelled:
        self._check_target(inputs, target)
        array = self.arrays[inputs]
        if array.ndim not in (3, 4) or not array.size:
            raise DataError(
                f"{inputs} in {self.path} must be [N, height, width] or [N, channels, height, "
                f"width], got {list(array.shape)}"
            )
        images = self._pixels(inputs).float()
        return images.unsqueeze(1) if images.dim() == 3 else images, self._labels(target)

    def _pixels(self, inputs: str) -> Tensor:
        import numpy as np
        import torch

        array = self.arrays[inputs]
        if array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = np.moveaxis(array, 3, 1)
        if array.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(array)).float() / 255
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise DataError(
                f"{inputs} in {self.path} must be bytes or of a floating type, got {array.dtype}"
            )
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.ascontiguousarray(array, dtype=native))

    def _labels(self, target: str) -> Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(self.arrays[target].reshape(-1).astype(np.int64))

    def _check_target(self, inputs: str, target: str) -> None:
        labels = self.arrays[target]
        if labels.shape not in ((labels.size,), (labels.size, 1)) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{target} in {self.path} must be whole numbers [N], got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        shape = self.arrays[inputs].shape
        if not shape or shape[0] != labels.size:
            raise DataError(f"{inputs} in {self.path} are {list(shape)}, with {labels.size} labels")

    def _classes(self, parts: Mapping[Part, Labelled]) -> int:
        classes = 1 + max(int(labels.max()) for _, labels in parts.values())
        if "class_names" not in self.arrays:
            return max(classes, 1)
        names = self.arrays["class_names"].size
        if classes > names:
            raise DataError(f"the labels go up to {classes - 1}, for {names} class_names")
        return names
