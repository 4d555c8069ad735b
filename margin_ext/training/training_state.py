"""A training's state on disk: whole, recognised by its settings, and checked by a hash."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margin_ext.models.checkpoint import read_checkpoint
from margin_ext.models.model_digest import tensor_bytes
from margin_ext.output.atomic_write import write_atomically

__all__ = ["OtherSettingsError", "read_state", "write_state"]

if TYPE_CHECKING:
    from typing import Protocol

    class _Hash(Protocol):
        def update(self, data: bytes | memoryview, /) -> None: ...


_IN_WORDS = "criterion"


class OtherSettingsError(Exception):
    """A file belongs to a training with other settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint.pt"
        ...     write_state(file, {"epoch": 3}, settings={"seed": 0})
        ...     read_state(file, settings={"seed": 1})
        Traceback (most recent call last):
            ...
        margin_ext.training.training_state.OtherSettingsError: ... (seed: 0 there, 1 here)
    """


def write_state(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Replace the file; a kill or a full disk leaves the old one or the new one.

    Args:
        path: The file.
        state: Tensors and plain values.
        settings: What must agree for the training to be continued; values that JSON knows.

    Raises:
        OSError: It cannot be written.
    """
    content = {**state, "settings_json": json.dumps(dict(settings), sort_keys=True)}
    content["digest"] = _digest(content)
    # Through memory: where the disk is full, torch's own writer hides the system's reason.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_state` wrote with the same settings; None where there is no file.

    Raises:
        OtherSettingsError: It was written with other settings.
        ValueError: It is no checkpoint of a training, or it is damaged.
    """
    if not path.exists():
        return None
    state = read_checkpoint(path)
    digest = state.pop("digest", None)
    if "settings_json" not in state:
        raise ValueError(f"{path} is no checkpoint of a training")
    if digest is None:
        raise ValueError(f"{path} was written by an earlier version, which kept no hash: --fresh")
    if digest != _digest(state):
        raise ValueError(
            f"{path} is damaged: its hash does not fit what it holds. Restore it from a copy, or "
            "start over with --fresh"
        )
    found = json.loads(state.pop("settings_json"))
    wanted = json.loads(json.dumps(dict(settings)))
    other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if other:
        # The criterion in words says once more what other settings say.
        other = [k for k in other if k != _IN_WORDS] or other
        differences = ", ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} here" for k in other)
        raise OtherSettingsError(f"{path} belongs to a run with other settings ({differences})")
    return state


def _digest(value: Any) -> str:
    """Hash of tensors and plain values, however deep."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: _Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} keys".encode())
        for key, item in value.items():
            _add(digest, key)
            _add(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} items".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())
