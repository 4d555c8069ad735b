"""Values as text, their comparison, and the environment in which every bit of them holds."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import api

__all__ = [
    "PATH",
    "as_text",
    "difference",
    "environment",
    "flattened",
    "numbers",
    "read",
    "tolerance",
    "write",
]

PATH = Path(os.environ.get("UNCHANGED_VALUES", Path(__file__).with_name("values.json")))

# Longer arrays are stored as a digest of all their bytes, two sums and some of their values.
_WHOLE = 16
_SOME = 6

_TEXT = re.compile(
    r"(?P<type>\w+)\[(?P<shape>[\d,]*)\]"
    r"(?: digest=(?P<digest>\w+) norm=(?P<norm>\S+) sum=(?P<sum>\S+))?(?P<values>.*)"
)


def flattened(values: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names such as "norms/l2/margin"."""
    if not isinstance(values, Mapping):
        return {name: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flattened(value, f"{name}/{key}" if name else str(key)))
    return flat


def as_text(value: Any) -> str:
    """The type, shape and values of a tensor or number; equal texts are equal bits.

    Numbers are decimal and exact: the shortest that are read back as the same bits. All NaNs
    count as one.
    """
    if value is None or isinstance(value, str):
        return f"text {value}"
    tensor = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
    array = _as_numpy(tensor).reshape(-1)
    head = f"{str(tensor.dtype).removeprefix('torch.')}[{','.join(map(str, tensor.shape))}]"
    if array.size > _WHOLE:
        numbers = array.astype(np.float64)
        norm = math.sqrt(math.fsum(float(x) ** 2 for x in numbers))
        # Weights that tell elements from each other, so that a swap is seen.
        total = math.fsum(float(x) * (1 + i % 5) for i, x in enumerate(numbers))
        digest = hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()
        digits = 17 if array.dtype == np.float64 else 9
        head += f" digest={digest} norm={norm:.{digits}g} sum={total:.{digits}g}"
        array = array[_some(array.size)]
    return " ".join([head, *(str(x) for x in array)])


def _some(size: int) -> NDArray[np.int64]:
    """Which elements of a long array are stored: evenly spread."""
    return np.arange(_SOME) * size // _SOME


def _as_tensor(value: Any) -> Tensor:
    # Python's own numbers are float64; torch would make them float32.
    array = np.asarray(value)
    return torch.from_numpy(array.copy())


def _as_numpy(tensor: Tensor) -> NDArray[Any]:
    """The values in a type that numpy has; float32 holds those of the half types exactly."""
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.int8)
    elif tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float32)
    array = tensor.cpu().contiguous().numpy().copy()
    if tensor.is_floating_point():
        array[np.isnan(array)] = np.nan
    return array


def tolerance(precision: torch.dtype, *, search: bool) -> float:
    """The largest difference, relative to an array's largest magnitude, on other machines.

    Sums of tens of terms in another order differ by some units in the last place. A difference of
    gaps divides them by a step of down to a twentieth of tau, and a gradient of a gradient is made
    of several such sums one after the other: together a thousand units in the last place. In the
    half types layers round their results too, which are a few steps: eight units.

    Searches start at random points that are drawn in float32 whatever the precision, take tens of
    steps, each from where the last one ended, and end on a grid of bisections: two thousandths.
    """
    if search:
        return 2e-3
    units = 8 if precision in (torch.bfloat16, torch.float16) else 1024
    return units * torch.finfo(precision).eps


def difference(stored: str, found: str, allowed: float) -> str | None:
    """How two texts differ; None where they agree.

    Args:
        stored: What is expected.
        found: What was computed.
        allowed: The largest relative difference; 0 asks for the same bits.
    """
    if stored == found:
        return None
    old, new = _TEXT.fullmatch(stored), _TEXT.fullmatch(found)
    if old is None or new is None or old["type"] != new["type"] or old["shape"] != new["shape"]:
        return f"stored {stored}, found {found}"
    names = [str(i) for i in range(len(old["values"].split()))]
    if old["digest"]:
        size = math.prod(int(extent) for extent in old["shape"].split(","))
        names = [*map(str, _some(size)), "norm", "weighted sum"]
    before, after = _numbers(old), _numbers(new)
    scale = np.abs(before[np.isfinite(before)]).max(initial=1e-3)
    # Infinities and NaNs have to be the same; then their difference is no number.
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(after - before) / scale)
    off = np.where(np.isnan(off), np.inf, off)
    whole = old["type"].startswith(("int", "bool"))
    if float(off.max(initial=0.0)) <= (0.0 if whole else allowed) and allowed > 0:
        return None
    worst = int(off.argmax())
    if off[worst] == 0:
        return "signs of zeros, or elements that are not stored, differ"
    return (
        f"[{names[worst]}] was {before[worst]!s}, is {after[worst]!s}: off by {off[worst]:.3g} "
        f"of the largest magnitude, allowed {allowed:.3g}"
    )


def numbers(text: str) -> NDArray[Any]:
    """The values of a text that holds them all or some, and then their two sums."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a type, shape and values, got {text!r}")
    return _numbers(match)


def _numbers(text: re.Match[str]) -> NDArray[Any]:
    values = text["values"].split()
    if text["digest"]:
        values += [text["norm"], text["sum"]]
    return np.array([float(value) for value in values])


def environment() -> dict[str, Any]:
    """What the last bits of results depend on."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        **api.environment(),
    }


def _processor() -> str:
    """The name and numbers of the processor's model."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = path.read_text().split("\n\n")[0]
    fields = dict(re.findall(r"^(.+?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
    names = ("model name", "cpu family", "model", "stepping")
    return ", ".join(f"{name} {fields[name]}" for name in names if name in fields)


def write(path: Path, values: Mapping[str, Mapping[str, str]]) -> None:
    content = {"version": api.version(), "environment": environment(), "values": values}
    path.write_text(json.dumps(content, indent=0) + "\n")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
