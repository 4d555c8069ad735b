"""Per-sample results that grow on disk and survive a kill."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from margin_ext.data.npz_file import read_npz
from margin_ext.models.model_digest import tensor_bytes
from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from margin_ext.data.batches import Batch

__all__ = ["FINGERPRINTED", "PartialResults"]

Columns = dict[str, NDArray[Any]]

# Samples whose values are compared before results are taken up.
FINGERPRINTED = 16

_FORMAT = 3
_HEADER = "header_json"
_OF_FINGERPRINT = "first:"


class PartialResults:
    """Columns of the samples measured so far, saved now and then.

    The file belongs to one model, one set of settings and one data set in one order. Each sample
    goes into a chained hash, so that a resumed run notices other or shuffled data. The model is
    recognised by what it computes: the first samples are measured again and compared, because a
    model can change in ways that no hash of its parameters shows (its code, a plain attribute).
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, Any], save_every: float = 10.0
    ) -> None:
        """Open ``path``, or keep everything in memory where it is None.

        Raises:
            ValueError: The file holds results of another model or other settings, or no results.
        """
        self.path = path
        self.save_every = save_every
        self.count = 0
        self.seconds = 0.0
        self._settings = json.dumps(dict(settings), sort_keys=True, default=str)
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._fingerprint: Columns = {}
        self._samples: list[str] = []
        self._chain = ""
        self._seen = 0
        self._expected = ""
        self._refused = False
        self._started = self._saved = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        arrays = read_npz(path)
        header = _Header.of(path, arrays.pop(_HEADER, None))
        if header.settings != self._settings:
            ours, theirs = json.loads(self._settings), json.loads(header.settings)
            other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"{path} holds results with other {', '.join(other)}; remove it or resume elsewhere"
            )
        self._fingerprint = {
            name.removeprefix(_OF_FINGERPRINT): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(_OF_FINGERPRINT)
        }
        wrong = [name for name, column in arrays.items() if column.shape[:1] != (header.count,)]
        if wrong:
            raise ValueError(
                f"{path} holds no whole results: {wrong[0]} must have {header.count} values, got "
                f"{list(arrays[wrong[0]].shape)}"
            )
        self._columns = {name: [column] for name, column in arrays.items()}
        self.count, self.seconds = header.count, header.seconds
        self._expected, self._samples = header.data, list(header.samples)

    def require_same_model(self, batch: Batch, measured: Columns) -> None:
        """Compare the first samples with those of the file; keep them where there is no file yet.

        Args:
            batch: The first samples of the data.
            measured: What the model gives for them, each [B, ...].

        Raises:
            ValueError: Data or model are not those that the results belong to.
        """
        samples = [_digest("", x, y) for x, y in zip(batch.inputs, batch.target, strict=True)]
        if not self._samples:
            self._samples, self._fingerprint = samples, measured
            return
        common = min(len(samples), len(self._samples))
        if samples[:common] != self._samples[:common]:
            raise self._other_data()
        for name, values in measured.items():
            known = self._fingerprint.get(name)
            if known is None or not _close(known[:common], values[:common]):
                self._refused = True
                raise ValueError(
                    f"{self.path} holds results of another model: {name} of the first samples "
                    "differ, though its parameters may be the same (changed code or attributes?); "
                    "remove the file or resume elsewhere"
                )

    def unmeasured(self, batch: Batch) -> Batch | None:
        """The part of a batch that is not yet measured; None where there is none.

        Raises:
            ValueError: The samples differ from those that the file's results belong to.
        """
        if self.path is None:
            return batch
        known = min(max(self.count - batch.first, 0), batch.target.shape[0])
        for x, y in zip(batch.inputs[:known], batch.target[:known], strict=True):
            self._add_to_chain(x, y)
        if known and self._seen == self.count and self._chain != self._expected:
            raise self._other_data()
        if known == batch.target.shape[0]:
            return None
        return batch.part(known, batch.target.shape[0])

    def append(self, batch: Batch, columns: Columns) -> None:
        """Add the results of a batch, and save if the last time is long ago."""
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        if self.path is None:
            return
        for x, y in zip(batch.inputs, batch.target, strict=True):
            self._add_to_chain(x, y)
        self.count += batch.target.shape[0]
        if time.monotonic() - self._saved >= self.save_every:
            self.save()

    def _add_to_chain(self, x: Tensor, y: Tensor) -> None:
        self._chain = _digest(self._chain, x, y)
        self._seen += 1

    def _other_data(self) -> ValueError:
        self._refused = True
        return ValueError(
            f"{self.path} holds results of other data, or of the same data in another order "
            "(a shuffling loader?)"
        )

    def save(self) -> None:
        """Write everything so far."""
        if self.path is None or self._refused or self._seen < self.count or not self.count:
            return
        header = {
            "format": _FORMAT,
            "settings": self._settings,
            "count": self.count,
            "data": self._chain,
            "samples": self._samples,
            "seconds": self.elapsed(),
        }
        # An interruption may have come between a batch's results and its samples' count.
        arrays = {name: column[: self.count] for name, column in self.columns().items()}
        arrays.update({_OF_FINGERPRINT + name: v for name, v in self._fingerprint.items()})
        arrays[_HEADER] = np.array(json.dumps(header))
        write_atomically(self.path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        self._saved = time.monotonic()

    def require_complete(self) -> None:
        """Raise where the file holds more samples than the data."""
        if self._seen < self.count:
            raise ValueError(
                f"{self.path} holds results of {self.count} samples, the data has {self._seen}"
            )

    def elapsed(self) -> float:
        """Seconds spent, those of earlier runs included."""
        return self.seconds + time.monotonic() - self._started

    def columns(self) -> Columns:
        """All results so far, one array a column."""
        return {name: np.concatenate(parts) for name, parts in self._columns.items()}


@dataclass(frozen=True)
class _Header:
    settings: str
    count: int
    data: str
    samples: list[str]
    seconds: float

    @staticmethod
    def of(path: Path, text: NDArray[Any] | None) -> _Header:
        if text is None:
            raise ValueError(f"{path} holds no partial results: it has no {_HEADER}")
        try:
            values = json.loads(str(text))
            version = values.get("format", 1)
            settings = values["settings"] if version == _FORMAT else "{}"
            json.loads(settings)
            header = _Header(
                settings=settings,
                count=int(values["count"]),
                data=str(values["data"]),
                samples=[str(one) for one in values.get("samples", ())],
                seconds=float(values["seconds"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} holds no partial results: its header is damaged "
                f"({type(error).__name__}: {error})"
            ) from error
        if version != _FORMAT:
            raise ValueError(
                f"{path} was written by another version of margin_ext (format {version}, not "
                f"{_FORMAT}); remove it or resume elsewhere"
            )
        return header


def _digest(before: str, x: Tensor, y: Tensor) -> str:
    digest = hashlib.blake2b(before.encode(), digest_size=16)
    digest.update(tensor_bytes(x))
    digest.update(tensor_bytes(y.reshape(1)))
    return digest.hexdigest()


def _close(known: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether values agree up to the rounding of another batch size or machine."""
    if known.shape != values.shape:
        return False
    finite = np.isfinite(values)
    if not (np.isfinite(known) == finite).all() or not (known[~finite] == values[~finite]).all():
        return False
    scale = float(np.abs(known[finite]).max(initial=0.0))
    return bool((np.abs(known[finite] - values[finite]) <= 1e-4 * scale).all())
