"""Reading npz files, whatever has become of them."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_npz"]


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """The plain arrays of an npz file, each of them whole: sizes and checksums are compared.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is no npz file, damaged, or holds Python objects, which could run code.
    """
    path = Path(path)
    if not path.is_file():
        what = "no regular file" if path.exists() else "no data"
        raise FileNotFoundError(f"{what} at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _array(archive, info)
                for info in archive.infolist()
            }
    # zipfile raises NotImplementedError for methods, RuntimeError for passwords.
    except (
        zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, LookupError,
        SyntaxError, TypeError, OverflowError,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is no whole npz file of plain arrays: {reason}") from error
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into memory") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if not info.filename.endswith(".npy"):
        raise ValueError(f"it holds {info.filename}, which is no array")
    with archive.open(info) as stream:
        shape, fortran_order, dtype = _header(stream)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        # Before anything is allocated: a header can state any size.
        left = info.file_size - stream.tell()
        if size != left:
            raise ValueError(f"{info.filename} should hold {size} bytes, it holds {left}")
        # One more byte than there is, so that zipfile comes to the end and compares the checksum.
        raw = stream.read(size + 1)
    if len(raw) != size:
        raise ValueError(f"{info.filename} should hold {size} bytes, it holds {len(raw)}")
    flat = np.frombuffer(bytearray(raw), dtype=dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"it is of npy version {version[0]}.{version[1]}")
