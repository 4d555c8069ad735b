"""Results are those of the version whose values are stored, but for what was changed on purpose."""

from __future__ import annotations

import pytest

from .changed import Change, change_of, unneeded
from .situations import SITUATIONS, computed
from .stored import PATH, difference, environment, read, tolerance

_STORED = read(PATH)
_EXACT = _STORED["environment"] == environment()
# Filled by the comparisons; the last test reads it.
_EXPLAINED: dict[tuple[str, str], Change] = {}


def test_every_situation_is_stored() -> None:
    assert sorted(_STORED["values"]) == sorted(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_unchanged(name: str) -> None:
    situation = SITUATIONS[name]
    allowed = 0.0 if _EXACT else tolerance(situation.precision, search=situation.search)
    stored, found = _STORED["values"][name], computed(situation)
    wrong = [f"{key}: new" for key in found if key not in stored]
    for key, value in stored.items():
        text = difference(value, found[key], allowed) if key in found else "missing"
        if text is None:
            continue
        change = change_of(name, key, value, found.get(key))
        if change is None:
            wrong.append(f"{key}: {text}")
        else:
            _EXPLAINED[name, key] = change
    assert not wrong, "\n".join([f"{name} has changed", *wrong])


@pytest.mark.skipif(not _EXACT, reason="tolerances hide small changes on other machines")
def test_every_change_is_needed(request: pytest.FixtureRequest) -> None:
    ran = {item.name for item in request.session.items}
    if not {f"test_unchanged[{name}]" for name in SITUATIONS} <= ran:
        pytest.skip("needs all comparisons of this file")
    assert [change.reason for change in unneeded(_EXPLAINED)] == []
