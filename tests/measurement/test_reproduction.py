"""The authors' figures, where their checkpoints and MNIST are at hand.

MARGIN_EXT_DATA names a folder with authors/ (checkpoints) and mnist/ (idx files).
MARGIN_EXT_DATA_PARTS chooses parts; by default those that take seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from margin_ext.reproduction.reproduce import PARTS, compare, reproduce

pytestmark = pytest.mark.data

DATA = os.environ.get("MARGIN_EXT_DATA", "")
CHOSEN = os.environ.get("MARGIN_EXT_DATA_PARTS", "linear weights").split()


@pytest.mark.parametrize("part", list(PARTS))
@pytest.mark.skipif(not DATA, reason="MARGIN_EXT_DATA names no folder with authors/ and mnist/")
@pytest.mark.timeout(7200)
def test_the_figures_come_out(part: str) -> None:
    if part not in CHOSEN and CHOSEN != ["all"]:
        pytest.skip(f"{part} takes minutes: name it in MARGIN_EXT_DATA_PARTS, or all")
    values = reproduce(Path(DATA) / "authors", Path(DATA) / "mnist", parts=[part])
    rows = compare(values)
    assert rows or part == "underflow"
    for row in rows:
        assert row.agrees or row.stated.known, (
            f"{row.name}: {row.ours} instead of {row.stated.value}"
        )
