"""Files that are not what they should be: a clear error, whatever the damage."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from margin_ext.data.idx_files import read_idx
from margin_ext.models.checkpoint import read_checkpoint


def flipped(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 0xFF
    return bytes(damaged)


WHOLE = b"\0\0\x08\x01\0\0\0\x40" + bytes(range(64))
# Without the time of day, which would be in the tests' names.
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("inside.gz", flipped(PACKED, 15), "is no whole gzip file"),
        ("cut.gz", PACKED[:-12], "is no whole gzip file"),
        ("header", b"\0\0\x08\x03\0\0", "ends within its header"),
        ("short", WHOLE[:-1], "it holds 63"),
        ("text", b"no idx file at all", "is no idx file"),
    ],
)
def test_idx_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_a_whole_idx_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "whole.gz"
    path.write_bytes(PACKED)
    assert read_idx(path).tolist() == list(range(64))


@pytest.mark.parametrize("content", [b"hello world, no checkpoint", b"", bytes(range(200, 256))])
def test_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no checkpoint of tensors and plain values: \w+"):
        read_checkpoint(path)
