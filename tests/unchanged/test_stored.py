"""The comparison sees single bits on the same machine, and more than rounding elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from .networks import numbers
from .stored import as_text, difference, tolerance

_LENGTHS = (1, 16, 17, 200)


def _with_next(values: torch.Tensor, index: int) -> torch.Tensor:
    """One element moved to the next number of its type."""
    changed = values.clone()
    changed[index] = torch.nextafter(values[index], torch.full_like(values[index], math.inf))
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", _LENGTHS)
def test_a_single_bit_is_seen(length: int, dtype: torch.dtype) -> None:
    values = numbers("values", length, dtype=dtype)
    stored = as_text(values)
    assert difference(stored, as_text(values.clone()), 0.0) is None
    for index in {0, length // 3, length - 1}:
        assert difference(stored, as_text(_with_next(values, index)), 0.0) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_single_bit_of_a_half_type_is_seen(dtype: torch.dtype) -> None:
    values = numbers("values", 40, dtype=dtype)
    changed = values.clone()
    changed.view(torch.int16)[7] += 1
    assert difference(as_text(values), as_text(changed), 0.0) is not None


@pytest.mark.parametrize("length", _LENGTHS)
def test_elsewhere_rounding_passes_and_more_does_not(length: int) -> None:
    values = numbers("values", length)
    allowed = tolerance(torch.float32, search=False)
    stored = as_text(values)
    assert difference(stored, as_text(_with_next(values, length - 1)), allowed) is None
    assert difference(stored, as_text(values * 1.001), allowed) is not None


@pytest.mark.parametrize("length", _LENGTHS[1:])
def test_swapped_elements_are_seen_elsewhere(length: int) -> None:
    values = numbers("values", length)
    swapped = values.clone()
    swapped[[3, 4]] = values[[4, 3]]
    allowed = tolerance(torch.float32, search=False)
    assert difference(as_text(values), as_text(swapped), allowed) is not None


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, -math.inf])),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, 3e38])),
        (1, 2),
        (True, False),
        (1, True),
        (None, 1),
        ("agrees", "wrong"),
    ],
)
def test_other_kinds_of_values_differ_anywhere(stored: object, found: object) -> None:
    for allowed in (0.0, 1e-4):
        assert difference(as_text(stored), as_text(found), allowed) is not None


def test_the_sign_of_zero_is_seen_on_the_same_machine_only() -> None:
    stored, found = as_text(torch.tensor([0.0, 1.0])), as_text(torch.tensor([-0.0, 1.0]))
    assert difference(stored, found, 0.0) is not None
    assert difference(stored, found, 1e-4) is None


@pytest.mark.parametrize("length", [3, 100])
def test_nans_are_alike(length: int) -> None:
    ours, theirs = np.zeros(length, dtype=np.float32), np.zeros(length, dtype=np.float32)
    ours.view(np.uint32)[1], theirs.view(np.uint32)[1] = 0x7FC00000, 0xFFC00001
    texts = [as_text(torch.from_numpy(array)) for array in (ours, theirs)]
    assert difference(texts[0], texts[1], 0.0) is None


def test_a_difference_says_where_and_how_large() -> None:
    text = difference(as_text(torch.tensor([1.0, 2.0])), as_text(torch.tensor([1.0, 2.5])), 0.0)
    assert text is not None
    assert "[1] was 2.0, is 2.5" in text
    assert "0.25" in text
