"""Reports as files."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np

from margin_ext.output.atomic_write import write_atomically, write_text
from margin_ext.output.finite_json import finite_json
from margin_ext.output.json_file import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from margin_ext.measurement.report import MarginReport

__all__ = ["save_report"]


def save_report(report: MarginReport, path: Path) -> Path:
    """Write atomically to .json, .csv or .npz; see `MarginReport.save`."""
    kinds = {".json": _json, ".csv": _csv, ".npz": _npz}
    if path.suffix not in kinds:
        raise ValueError(f"a report is saved to .json, .csv or .npz, got {path.name}")
    kinds[path.suffix](report, path)
    return path


def _json(report: MarginReport, path: Path) -> None:
    write_json(path, report.to_dict())


def _npz(report: MarginReport, path: Path) -> None:
    summary = json.dumps(finite_json(report.to_dict(samples=False)))
    columns = {**report.columns(), "report_json": np.array(summary)}
    write_atomically(path, lambda file: np.savez_compressed(file, **columns))  # type: ignore[arg-type]


def _csv(report: MarginReport, path: Path) -> None:
    columns = report.columns()
    lines: list[str] = []
    writer = csv.writer(_Lines(lines))
    writer.writerow(["index", *columns])
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    writer.writerows([i, *row] for i, row in enumerate(rows))
    write_text(path, "".join(lines))


class _Lines:
    """The little of a file that csv.writer needs."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, line: str) -> None:
        self._lines.append(line)
