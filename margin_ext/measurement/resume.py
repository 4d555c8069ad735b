"""Per-sample results that grow on disk and survive a kill."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from margin_ext.data.batches import Batch
from margin_ext.models.model_digest import tensor_bytes
from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["PartialResults"]

Columns = dict[str, NDArray[Any]]


class PartialResults:
    """Columns of the samples measured so far, saved now and then.

    The file belongs to one model, one set of settings and one data set in one order: each sample
    goes into a chained hash, so that a resumed run notices other or shuffled data.
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
        self._chain = ""
        self._seen = 0
        self._expected = ""
        self._other_data = False
        self._started = self._saved = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = dict(file)
            header = json.loads(str(columns.pop("header_json")))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} holds no partial results: {error}") from error
        if header["settings"] != self._settings:
            ours, theirs = json.loads(self._settings), json.loads(header["settings"])
            other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"{path} holds results with other {', '.join(other)}; remove it or resume elsewhere"
            )
        self._columns = {name: [column] for name, column in columns.items()}
        self.count = int(header["count"])
        self.seconds = float(header["seconds"])
        self._expected = str(header["data"])

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
            self._other_data = True
            raise ValueError(
                f"{self.path} holds results of other data, or of the same data in another order "
                "(a shuffling loader?)"
            )
        if known == batch.target.shape[0]:
            return None
        return Batch(batch.first + known, batch.inputs[known:], batch.target[known:])

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
        digest = hashlib.blake2b(self._chain.encode(), digest_size=16)
        digest.update(tensor_bytes(x))
        digest.update(tensor_bytes(y.reshape(1)))
        self._chain = digest.hexdigest()
        self._seen += 1

    def save(self) -> None:
        """Write everything so far."""
        if self.path is None or self._other_data or self._seen < self.count:
            return
        header = {
            "settings": self._settings,
            "count": self.count,
            "data": self._chain,
            "seconds": self.elapsed(),
        }
        # An interruption may have come between a batch's results and its samples' count.
        columns = {name: column[: self.count] for name, column in self.columns().items()}
        arrays = {**columns, "header_json": np.array(json.dumps(header))}
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
