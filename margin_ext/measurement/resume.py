"""Per-sample results that grow on disk, can be read while they grow, and survive a kill."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from margin_ext.data.npz_file import read_npz
from margin_ext.models.model_digest import tensor_bytes
from margin_ext.output.atomic_write import write_atomically
from margin_ext.ranks import ALONE

if TYPE_CHECKING:
    from torch import Tensor

    from margin_ext.data.batches import Batch
    from margin_ext.ranks import Ranks

__all__ = ["FINGERPRINTED", "PartialResults", "read_partial_results"]

Columns = dict[str, NDArray[Any]]

# Samples whose values are compared before results are taken up.
FINGERPRINTED = 16
# Saving may take this fraction of the time: files of long runs are large.
_SAVING_FRACTION = 0.02

_FORMAT = 3
_HEADER = "header_json"
_OF_FINGERPRINT = "first:"
# The samples' numbers in the data, and hashes of their inputs and labels.
_INDEX, _HASH = "index", "hash"


def read_partial_results(path: str | Path) -> Columns:
    """The results so far of a run that keeps them in a file, by column, in the data's order.

    The run may go on meanwhile, also on several ranks. The column "index" has the samples' numbers.

    Args:
        path: The file that the run was given as ``resume``.

    Raises:
        FileNotFoundError: There are no results yet.
        ValueError: A file is damaged, or holds something else.

    Example:
        >>> import tempfile, torch
        >>> from margin_ext import measure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "partial.npz"
        ...     data = torch.rand(5, 2), torch.zeros(5, dtype=torch.int64)
        ...     report = measure(torch.nn.Linear(2, 2), data, resume=file)
        ...     read_partial_results(file)["index"]
        array([0, 1, 2, 3, 4])
    """
    path = Path(path)
    kept = [_File.read(file) for file in _files(path)]
    if not kept:
        raise FileNotFoundError(f"no results at {path}")
    joined = _joined([file.columns for file in kept])
    # Two runs may have left the same sample in files of different ranks.
    _, rows = np.unique(joined[_INDEX], return_index=True)
    return {name: column[rows] for name, column in joined.items() if name != _HASH}


class PartialResults:
    """Columns of the samples measured so far, saved now and then.

    The files belong to one model, one set of settings and one data set in one order. Every sample's
    number and a hash of it are kept, so that a resumed run notices other or shuffled data, and may
    have another number of ranks or other batches. The model is recognised by what it computes: the
    first samples are measured again and compared, because a model can change in ways that no hash
    of its parameters shows (its code, a plain attribute).

    Each rank reads the files of all, and writes one: rank 0 the file itself, and rank 3 of
    partial.npz ``partial.rank3.npz``.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        save_every: float = 10.0,
        ranks: Ranks = ALONE,
    ) -> None:
        """Open ``path``, or keep everything in memory where it is None.

        Args:
            path: The file of rank 0.
            settings: What must agree for results to be taken up, as plain values.
            save_every: Seconds between two savings; saving takes at most 2 % of the time. 0: after
                each batch.
            ranks: The processes that measure together.

        Raises:
            ValueError: A file holds results of another model or other settings, or no results.
        """
        self.path = None if path is None else rank_file(path, ranks.rank)
        self.save_every = save_every
        self.ranks = ranks
        self._settings = json.dumps(dict(settings), sort_keys=True, default=str)
        # What this rank's file holds, in parts.
        self._own: list[Columns] = []
        # What was measured before, on any rank, and where a sample's row is.
        self._known: Columns = {}
        self._rows: dict[int, int] = {}
        # What this run has passed, in its order, and how many of that were known.
        self._passed: list[Columns] = []
        self._met = 0
        self._fingerprint: Columns = {}
        self._samples: list[str] = []
        self._refused = self._unsaved = False
        self._seconds = self._saving = 0.0
        self._started = self._saved = time.monotonic()
        if path is not None:
            self._load(path)

    def _load(self, path: Path) -> None:
        kept = []
        for place in _files(path):
            file = _File.read(place)
            self._require_settings(file)
            if file.samples:
                self._samples, self._fingerprint = list(file.samples), file.fingerprint
            self._seconds = max(self._seconds, file.seconds)
            if place == self.path:
                self._own.append(file.columns)
            kept.append(file.columns)
        if kept:
            self._known = _joined(kept)
            self._rows = {int(index): row for row, index in enumerate(self._known[_INDEX])}

    def _require_settings(self, file: _File) -> None:
        if file.settings == self._settings:
            return
        ours, theirs = json.loads(self._settings), json.loads(file.settings)
        other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        raise ValueError(
            f"{file.path} holds results with other {', '.join(other)}; remove it or resume "
            "elsewhere"
        )

    @property
    def count(self) -> int:
        """Number of samples that were measured before, on any rank."""
        return len(self._rows)

    def require_same_model(self, batch: Batch, measured: Columns) -> None:
        """Compare the first samples with those of the file; keep them where there is no file yet.

        Args:
            batch: The first samples of the data.
            measured: What the model gives for them, each [B, ...].

        Raises:
            ValueError: Data or model are not those that the results belong to.
        """
        samples = [f"{one:016x}" for one in _hashes(batch).tolist()]
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

    def pieces(self, batch: Batch) -> list[tuple[Batch, Columns | None]]:
        """The batch in pieces, each with its results where they are known from before.

        Raises:
            ValueError: The samples differ from those that the results belong to.
        """
        # -1 is no row: the sample is new.
        rows = np.array([self._rows.get(index, -1) for index in batch.indices])
        ends = (np.flatnonzero(np.diff(rows < 0)) + 1).tolist()
        found: list[tuple[Batch, Columns | None]] = []
        for start, end in zip([0, *ends], [*ends, len(rows)], strict=True):
            piece, chosen = batch.part(start, end - start), rows[start:end]
            if chosen[0] < 0:
                found.append((piece, None))
                continue
            known = {name: column[chosen] for name, column in self._known.items()}
            if (_hashes(piece) != known[_HASH]).any():
                raise self._other_data()
            found.append((piece, known))
        return found

    def take(self, known: Columns) -> None:
        """Pass by results that are known from before."""
        self._passed.append(known)
        self._met += len(known[_INDEX])

    def append(self, batch: Batch, columns: Columns) -> None:
        """Add the results of a batch, and save if the last time is long ago."""
        columns = {_INDEX: np.array(batch.indices, dtype=np.int64), **columns}
        if self.path is not None:
            columns[_HASH] = _hashes(batch)
            self._own.append(columns)
            self._unsaved = True
        self._passed.append(columns)
        wait = max(self.save_every, self._saving / _SAVING_FRACTION if self.save_every else 0.0)
        if time.monotonic() - self._saved >= wait:
            self.save()

    def _other_data(self) -> ValueError:
        self._refused = True
        return ValueError(
            f"{self.path} holds results of other data, or of the same data in another order "
            "(a shuffling loader?)"
        )

    def save(self) -> None:
        """Write this rank's results so far."""
        if self.path is None or self._refused or not self._unsaved:
            return
        start = time.monotonic()
        # Joined once, so that the next time joins few parts.
        columns = _joined(self._own)
        self._own = [columns]
        header = {
            "format": _FORMAT,
            "settings": self._settings,
            "count": len(columns[_INDEX]),
            "samples": self._samples if self.ranks.is_main else [],
            "seconds": self.elapsed(),
        }
        arrays = dict(columns)
        if self.ranks.is_main:
            arrays.update({_OF_FINGERPRINT + name: v for name, v in self._fingerprint.items()})
        arrays[_HEADER] = np.array(json.dumps(header))
        write_atomically(self.path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        self._unsaved = False
        self._saved = time.monotonic()
        self._saving = self._saved - start

    def elapsed(self) -> float:
        """Seconds spent, those of earlier runs included."""
        return self._seconds + time.monotonic() - self._started

    def passed(self) -> tuple[Columns, int]:
        """What this run has passed on this rank, and how many of these samples were known."""
        return (_joined(self._passed) if self._passed else {}), self._met


def rank_file(path: Path, rank: int) -> Path:
    """Where a rank writes.

    Example:
        >>> rank_file(Path("partial.npz"), 3).name
        'partial.rank3.npz'
    """
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def _files(path: Path) -> list[Path]:
    """The files of all ranks that there are, that of rank 0 first."""
    own = re.compile(re.escape(path.stem) + r"\.rank(\d+)" + re.escape(path.suffix))
    found = {}
    if path.parent.is_dir():
        matches = ((own.fullmatch(file.name), file) for file in path.parent.iterdir())
        found = {int(match[1]): file for match, file in matches if match is not None}
    return [*([path] if path.exists() else []), *(found[rank] for rank in sorted(found))]


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class _File:
    """What a rank's file holds."""

    path: Path
    settings: str
    samples: list[str]
    seconds: float
    fingerprint: Columns
    columns: Columns

    @staticmethod
    def read(path: Path) -> _File:
        arrays = read_npz(path)
        header = _header(path, arrays.pop(_HEADER, None))
        fingerprint = {
            name.removeprefix(_OF_FINGERPRINT): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(_OF_FINGERPRINT)
        }
        missing = [name for name in (_INDEX, _HASH) if name not in arrays]
        if missing:
            raise ValueError(f"{path} holds no partial results: it has no {missing[0]}")
        wrong = [name for name, column in arrays.items() if column.shape[:1] != (header["count"],)]
        if wrong:
            raise ValueError(
                f"{path} holds no whole results: {wrong[0]} must have {header['count']} values, "
                f"got {list(arrays[wrong[0]].shape)}"
            )
        return _File(
            path, header["settings"], header["samples"], header["seconds"], fingerprint, arrays
        )


def _header(path: Path, text: NDArray[Any] | None) -> dict[str, Any]:
    if text is None:
        raise ValueError(f"{path} holds no partial results: it has no {_HEADER}")
    try:
        values = json.loads(str(text))
        version = values.get("format", 1)
        settings = values["settings"] if version == _FORMAT else "{}"
        json.loads(settings)
        header = {
            "settings": settings,
            "count": int(values["count"]),
            "samples": [str(one) for one in values.get("samples", ())],
            "seconds": float(values["seconds"]),
        }
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


def _hashes(batch: Batch) -> NDArray[np.uint64]:
    """A hash of each sample's inputs and label [B]."""
    # At once, because each copy from a GPU waits for it.
    pairs = zip(batch.inputs.detach().cpu(), batch.target.cpu(), strict=True)
    return np.array([_hash(x, y) for x, y in pairs], dtype=np.uint64)


def _hash(x: Tensor, y: Tensor) -> int:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(tensor_bytes(x))
    digest.update(tensor_bytes(y.reshape(1)))
    return int.from_bytes(digest.digest(), "big")


def _close(known: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether values agree up to the rounding of another batch size or machine."""
    if known.shape != values.shape:
        return False
    finite = np.isfinite(values)
    if not (np.isfinite(known) == finite).all() or not (known[~finite] == values[~finite]).all():
        return False
    scale = float(np.abs(known[finite]).max(initial=0.0))
    return bool((np.abs(known[finite] - values[finite]) <= 1e-4 * scale).all())
