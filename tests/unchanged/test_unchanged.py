"""Results are those of the version whose values are stored."""

from __future__ import annotations

import pytest

from .situations import SITUATIONS, computed
from .stored import PATH, difference, environment, read, tolerance

_STORED = read(PATH)
_EXACT = _STORED["environment"] == environment()


def test_every_situation_is_stored() -> None:
    assert sorted(_STORED["values"]) == sorted(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_unchanged(name: str) -> None:
    situation = SITUATIONS[name]
    allowed = 0.0 if _EXACT else tolerance(situation.precision, search=situation.search)
    stored, found = _STORED["values"][name], computed(situation)
    assert sorted(found) == sorted(stored)
    differences = {key: difference(stored[key], found[key], allowed) for key in stored}
    wrong = [f"{key}: {text}" for key, text in differences.items() if text is not None]
    assert not wrong, "\n".join([f"{name} has changed", *wrong])
