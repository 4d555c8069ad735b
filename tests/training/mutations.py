"""Damaged contents of files, as broken downloads, disks and hands make them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

# A few a file in the suite; MARGIN_EXT_MUTATIONS=300 for more.
COUNT = int(os.environ.get("MARGIN_EXT_MUTATIONS", "40"))

FOREIGN = (
    b"",
    b"\0",
    b"[1]\n",
    b"null",
    b'{"epoch": 1}\n',
    b"<html>not found</html>",
    b"\xff\xfe\0",
)


def mutations(whole: bytes, seed: int = 0, count: int = COUNT) -> Iterator[bytes]:
    """Contents that differ from the whole one."""
    rng = random.Random(seed)
    yield from FOREIGN
    kinds = (_flipped_bit, _cut, _zeros, _inserted, _removed, _swapped, _noise, _longer)
    done = len(FOREIGN)
    while done < count:
        damaged = rng.choice(kinds)(whole, rng)
        if damaged != whole:
            yield damaged
            done += 1


def _flipped_bit(whole: bytes, rng: random.Random) -> bytes:
    found = bytearray(whole)
    found[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _span(whole: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(whole))
    return start, min(len(whole), start + rng.choice((1, 2, 8, 64, 512)))


def _cut(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def _zeros(whole: bytes, rng: random.Random) -> bytes:
    start, end = _span(whole, rng)
    return whole[:start] + bytes(end - start) + whole[end:]


def _inserted(whole: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    return whole[:start] + rng.randbytes(rng.choice((1, 4, 16))) + whole[start:]


def _removed(whole: bytes, rng: random.Random) -> bytes:
    start, end = _span(whole, rng)
    return whole[:start] + whole[end:]


def _swapped(whole: bytes, rng: random.Random) -> bytes:
    middle = rng.randrange(len(whole))
    return whole[middle:] + whole[:middle]


def _noise(whole: bytes, rng: random.Random) -> bytes:
    start, end = _span(whole, rng)
    return whole[:start] + rng.randbytes(end - start) + whole[end:]


def _longer(whole: bytes, rng: random.Random) -> bytes:
    return whole + rng.randbytes(rng.choice((1, 16, 300)))
