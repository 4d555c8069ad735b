"""Results are those of the version whose values are stored, but for what was changed on purpose."""

from __future__ import annotations

import re

import pytest

from .changed import CHANGES, Change, change_of
from .situations import SITUATIONS, computed
from .stored import PATH, difference, environment, read, tolerance

_STORED = read(PATH)
_EXACT = _STORED["environment"] == environment()


def test_every_situation_is_stored() -> None:
    assert sorted(_STORED["values"]) == sorted(SITUATIONS)


def explained(name: str) -> tuple[dict[str, Change], list[str]]:
    """The changes that explain a situation's differences, by the value, and what none explains."""
    situation = SITUATIONS[name]
    allowed = 0.0 if _EXACT else tolerance(situation.precision, search=situation.search)
    stored, found = _STORED["values"][name], computed(situation)
    changes: dict[str, Change] = {}
    wrong = [f"{key}: new" for key in found if key not in stored]
    for key, value in stored.items():
        text = difference(value, found[key], allowed) if key in found else "missing"
        if text is None:
            continue
        change = change_of(name, key, value, found.get(key))
        if change is None:
            wrong.append(f"{key}: {text}")
        else:
            changes[key] = change
    return changes, wrong


@pytest.mark.parametrize("name", SITUATIONS)
def test_unchanged(name: str) -> None:
    _, wrong = explained(name)
    assert not wrong, "\n".join([f"{name} has changed", *wrong])


@pytest.mark.skipif(not _EXACT, reason="tolerances hide small changes on other machines")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.situations)
def test_every_change_is_needed(change: Change) -> None:
    candidates = (name for name in SITUATIONS if re.fullmatch(change.situations, name))
    assert any(change in explained(name)[0].values() for name in candidates), change.reason
