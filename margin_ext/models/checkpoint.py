"""Loading checkpoints safely, with messages that say what does not fit."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.output.regular_file import require_regular_file

__all__ = ["load_checkpoint", "read_checkpoint"]

# Where training scripts put the parameters.
_KEYS = ("model_state_dict", "state_dict", "model")
# What averaged models keep in addition to the model.
_OF_AVERAGES = "n_averaged"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything that a checkpoint holds, on the CPU; tensors and plain values only, no code.

    The checksums that torch writes into a file are compared first: torch itself does not look at
    them, and would read a damaged weight as it is.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, damaged, or holds objects that loading would have to
            execute; the message names their classes.
    """
    path = Path(path)
    require_regular_file(path, "checkpoint")
    try:
        _compare_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Damage shows in many ways, from pickle.UnpicklingError to an index out of range.
    except Exception as error:
        reason = _foreign_classes(path, str(error)) or _one_line(error)
        if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in reason:
            reason = "UnpicklingError: torch cannot read it"  # torch's advice is to run its code
        raise ValueError(
            f"{path} is no checkpoint of tensors and plain values: {reason}"
        ) from error
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise ValueError(f"{path} holds a {found}, not a dictionary")  # noqa: TRY004
    return dict(content)


def _compare_checksums(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch's format of before 2020, which has none
    with zipfile.ZipFile(path) as archive:
        # All 0 where they were not asked for (torch.serialization.set_crc32_options(False)).
        some = any(member.CRC for member in archive.infolist())
        damaged = archive.testzip() if some else None
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not fit: the file is damaged")


def _foreign_classes(path: Path, message: str) -> str:
    """Names of the classes that stand in the way, in words; empty where none do."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        found = []
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if not found and named is not None:
        found = [named[1]]
    if not found:
        return ""
    more = " ..." if len(found) > 5 else ""
    return (
        f"it holds {', '.join(found[:5])}{more}, which could only be loaded by running code; save "
        "model.state_dict() and plain values"
    )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # torch explains in colours, several lines long.
    reason = re.sub(r"\x1b.[0-9;]*m", "", lines[0])
    return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load the parameters into the model.

    Names may bear the prefixes of DataParallel, DistributedDataParallel, torch.compile, averaged
    models or any other wrapper, on either side.

    Returns:
        Everything else that the checkpoint holds.

    Raises:
        FileNotFoundError, ValueError: As `read_checkpoint`; or names or shapes do not fit, and
            then the model is unchanged.
    """
    content = read_checkpoint(path)
    key = next((key for key in _KEYS if isinstance(content.get(key), Mapping)), None)
    state = _tensors(content if key is None else content[key])
    expected = _tensors(model.state_dict())
    renamed = next(
        (named for named in _renamed(state, expected) if named.keys() == expected.keys()), None
    )
    complaints = _complaints(_unwrapped(state) if renamed is None else renamed, expected)
    if renamed is None or complaints:
        raise ValueError(f"the checkpoint {path} does not fit the model: {'; '.join(complaints)}")
    model.load_state_dict(renamed)
    loaded = state if key is None else {key}
    return {name: value for name, value in content.items() if name not in loaded}


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _renamed(state: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state under the names that the model may have for it, likeliest first."""
    yield state
    plain = _unwrapped(state)
    yield plain
    # The model is wrapped itself: what its names are without the wrapper.
    own = dict(zip(_unwrapped(expected), (n for n in expected if n != _OF_AVERAGES), strict=False))
    if plain.keys() == own.keys():
        named = {own[name]: tensor for name, tensor in plain.items()}
        if _OF_AVERAGES in expected:
            named[_OF_AVERAGES] = state.get(_OF_AVERAGES, expected[_OF_AVERAGES])
        yield named


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that all names share, and without what wrappers add."""
    names = {name: name.replace("_orig_mod.", "") for name in state if name != _OF_AVERAGES}
    while names:
        first, dot, _ = next(iter(names.values())).partition(".")
        prefix = first + dot
        # One layer's own name is no wrapper's.
        if not dot or first.isdigit() or not all(n.startswith(prefix) for n in names.values()):
            break
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {short: state[name] for name, short in names.items()}


def _complaints(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
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
    return complaints
