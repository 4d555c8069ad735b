"""A training's state on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from margin_ext.measurement.checkpoint import read_checkpoint
from margin_ext.measurement.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OtherSettingsError", "read_state", "write_state"]


class OtherSettingsError(Exception):
    """The file belongs to a training with other settings."""


def write_state(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Replace the file; a kill leaves the old one or the new one."""
    content = {**state, "settings_json": json.dumps(dict(settings), sort_keys=True)}
    write_atomically(path, lambda file: torch.save(content, file))


def read_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_state` wrote with the same settings; None where there is no file.

    Raises:
        OtherSettingsError: It was written with other settings.
        ValueError: It is no checkpoint of a training.
    """
    if not path.exists():
        return None
    state = read_checkpoint(path)
    if "settings_json" not in state:
        raise ValueError(f"{path} is no checkpoint of a training")
    require_same_settings(path, json.loads(state.pop("settings_json")), settings)
    return state


def require_same_settings(
    path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise OtherSettingsError with the names of what differs."""
    wanted = json.loads(json.dumps(dict(settings)))
    other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if other:
        differences = ", ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} here" for k in other)
        raise OtherSettingsError(f"{path} belongs to a run with other settings ({differences})")
