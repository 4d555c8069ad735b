"""JSON files: written whole, and read with one line that says what is wrong with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from margin_ext.output.atomic_write import write_text
from margin_ext.output.finite_json import finite_json
from margin_ext.output.regular_file import require_regular_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_json", "write_json"]


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write plain values atomically, NaN and infinity as `finite_json` has them."""
    write_text(path, json.dumps(finite_json(value), indent=indent))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, damaged, or something else; the message names the file.
    """
    require_regular_file(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole JSON file: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} must hold a JSON object, got {kind}")  # noqa: TRY004
    return content
