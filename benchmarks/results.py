"""Results as JSON files: written as they come, continued after an interruption."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import environment

FORMAT = 1
FOLDER = Path(__file__).parent / "results"
# Figures of a smoke test are worth nothing: they are kept out of the results.
QUICK_FOLDER = environment.ROOT / ".benchmarks" / "quick"


def default_path(part: str, device: str, quick: bool) -> Path:
    """Machine kind, date and part in the name."""
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    folder = QUICK_FOLDER if quick else FOLDER
    return folder / f"{environment.machine_kind(device)}_{today}_{part}.json"


class Results:
    """The results of one part of the suite.

    A file that is already there is continued if it was begun with the same code, on the same kind
    of machine, with the same settings; otherwise it is written anew.
    """

    def __init__(
        self,
        path: Path,
        part: str,
        device: str,
        settings: dict[str, Any],
        *,
        quick: bool = False,
        fresh: bool = False,
    ) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "part": part,
            "device": device,
            "quick": quick,
            "started": _now(),
            "finished": None,
            "environment": environment.describe(device),
            "settings": settings,
            "cases": [],
        }
        if not fresh:
            self._continue()
        path.parent.mkdir(parents=True, exist_ok=True)

    def _continue(self) -> None:
        try:
            earlier = json.loads(self.path.read_text())
            same = all(earlier[key] == self.content[key] for key in _MUST_AGREE) and (
                earlier["environment"]["fingerprint"] == self.content["environment"]["fingerprint"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return
        if same:
            self.content = earlier

    @property
    def device(self) -> str:
        return str(self.content["device"])

    def has(self, name: str) -> bool:
        """Whether a case of this name is measured already."""
        return any(case["name"] == name for case in self.content["cases"])

    def add(self, case: dict[str, Any]) -> None:
        """Add a case, which has a name of its own, and save."""
        self.content["cases"].append(case)
        self._save()

    def finish(self) -> Path:
        self.content["finished"] = _now()
        self._save()
        return self.path

    def _save(self) -> None:
        """Whole or not at all: an interrupted write must not cost what was measured before."""
        draft = self.path.with_suffix(".partial")
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self.path)


_MUST_AGREE = ("format", "part", "device", "quick", "settings")


def load(path: Path) -> dict[str, Any]:
    """Read one file.

    Raises:
        ValueError: It is not one of ours.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold benchmark results of format {FORMAT}")
    return content


def load_folder(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All results of a folder; files of other programs are passed over."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError):
            yield path, load(path)


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
