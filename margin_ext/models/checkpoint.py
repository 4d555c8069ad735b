"""Loading checkpoints safely, with messages that say what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_checkpoint", "read_checkpoint"]

# Where training scripts put the parameters.
_KEYS = ("model_state_dict", "state_dict", "model")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything that a checkpoint holds, on the CPU; tensors and plain values only, no code.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or it holds objects that loading would have to execute.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(
            f"{path} is no checkpoint of tensors and plain values: {reason}"
        ) from error
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise ValueError(f"{path} holds a {found}, not a dictionary")  # noqa: TRY004
    return dict(content)


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load the parameters into the model.

    Returns:
        Everything else that the checkpoint holds.

    Raises:
        FileNotFoundError, ValueError: As `read_checkpoint`; or names or shapes do not fit, and
            then the model is unchanged.
    """
    content = read_checkpoint(path)
    key = next((key for key in _KEYS if isinstance(content.get(key), Mapping)), None)
    state = content if key is None else content[key]
    state = {
        # DataParallel and DDP put "module." before every name.
        name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    expected = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    complaints = [
        f"{what} {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", expected.keys() - state.keys()),
            ("unexpected", state.keys() - expected.keys()),
        )
        if names
    ]
    complaints += [
        f"{name} has shape {tuple(state[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if complaints:
        raise ValueError(f"the checkpoint {path} does not fit the model: {'; '.join(complaints)}")
    model.load_state_dict(state)
    return {name: value for name, value in content.items() if name != key}
