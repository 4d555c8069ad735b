"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.data.data_source import DataError, DataSource, register_data_source

if TYPE_CHECKING:
    from margin_ext.data.image_data import ImageData

__all__ = ["Digits"]

# The split must be the same whatever the training's seed: what was tuned on stays out of the test.
_SPLIT_SEED = 0
_TRAIN, _VALIDATION = 1000, 297


@register_data_source
class Digits(DataSource):
    """The 1797 handwritten digits of scikit-learn, always in the same shuffled order."""

    name = "digits"
    summary = "the 8 x 8 digits of scikit-learn: 1000 to train on, 297 for validation, 500 to test"
    radii = {2: (0.3, 0.6, 0.9), "inf": (0.05, 0.1, 0.2)}  # noqa: RUF012

    def load(self, place: str = "") -> ImageData:
        """All of them; DataError where scikit-learn is not installed."""
        import torch

        from margin_ext.data.image_data import ImageData

        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError(
                "the digits come with scikit-learn, which is not installed: "
                "pip install 'margin_ext[demo]'"
            ) from error
        raw = load_digits()
        images = torch.tensor(raw.images, dtype=torch.float32, device="cpu").unsqueeze(1) / 16
        labels = torch.tensor(raw.target, dtype=torch.int64, device="cpu")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        train, validation, test = (
            (images[part], labels[part])
            for part in order.tensor_split([_TRAIN, _TRAIN + _VALIDATION])
        )
        return ImageData("scikit-learn digits", train, validation, test, unit_range=True)
