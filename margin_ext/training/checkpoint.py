"""A training's state on disk."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from margin_ext.models.checkpoint import read_checkpoint
from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from _typeshed import DataclassInstance

__all__ = ["OtherSettingsError", "read_state", "told_fields", "write_state"]


class OtherSettingsError(Exception):
    """The file belongs to a training with other settings."""


def write_state(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Replace the file; a kill or a full disk leaves the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    content = {**state, "settings_json": json.dumps(dict(settings), sort_keys=True)}
    # Through memory: where the disk is full, torch's own writer hides the system's reason.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


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


def told_fields(settings: DataclassInstance, first: Collection[str]) -> dict[str, Any]:
    """The fields that settings are recognised by.

    Those that came later than ``first`` count only where they differ from their default, so that
    files from before they existed still fit.
    """
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name in first or getattr(settings, field.name) != field.default
    }
