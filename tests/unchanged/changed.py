"""What was changed on purpose since the values were stored, with the reason and what holds instead.

Every entry has to be needed: `test_every_change_is_needed` fails for one that nothing differs by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .stored import numbers

__all__ = ["CHANGES", "Change", "change_of"]


def gone(stored: str, found: str | None) -> bool:
    """The value is not there any more."""
    return found is None


def not_farther(stored: str, found: str | None) -> bool:
    """Points are as near on average, up to half a hundredth, and none is much farther.

    The stored searches had 25 steps, and either may end in another local minimum.
    """
    if found is None:
        return False
    before, after = numbers(stored), numbers(found)
    return float(after.mean()) <= 1.005 * float(before.mean()) and bool(
        np.all(after <= 1.02 * before)
    )


def not_more(stored: str, found: str | None) -> bool:
    """Nothing is robust that was not."""
    return found is not None and bool(np.all(numbers(found) <= numbers(stored)))


def no_worse_certificate(stored: str, found: str | None) -> bool:
    """Lower bounds are smaller by a hundredth at most, which rounding takes, or larger."""
    if found is None:
        return False
    before, after = numbers(stored), numbers(found)
    return bool(np.all((after >= 0.99 * before) & (after <= 1.25 * before)))


def within_rounding(stored: str, found: str | None) -> bool:
    """The values differ by a few roundings of float32 at most."""
    if found is None:
        return False
    before, after = numbers(stored), numbers(found)
    return bool(np.all(np.abs(after - before) <= 1e-6 * np.abs(before).max()))


def present(stored: str, found: str | None) -> bool:
    """There is still such a value: what it is made of is compared under other names."""
    return found is not None


@dataclass(frozen=True)
class Change:
    """A change on purpose.

    Attributes:
        situations: A pattern for names of situations.
        keys: A pattern for names of values.
        reason: Why they differ.
        holds: What is right now, of the stored and the found text.
    """

    situations: str
    keys: str
    reason: str
    holds: Callable[[str, str | None], bool]


CHANGES = (
    Change(
        r"loss/norms/p=1, secant",
        r".*",
        "the attack behind secant margins is projected onto the l1 ball exactly, which moves its "
        "points",
        present,
    ),
    Change(
        r"loss/secant/in a box",
        r".*",
        "inputs outside of the range that the secant is given are refused, as these are",
        gone,
    ),
    Change(
        r"pgd/(p=2, .*|2 restarts, .*|norm floor, .*)",
        r"points",
        "a step and its projection are one op, which sums the squares of an l2 length in another "
        "order",
        within_rounding,
    ),
    Change(
        r"measure/gelu, batches of 3, .*",
        r"samples/(margin|norm)_l2|norms/l2/margin",
        "several classes of small inputs share a backward pass, which sums in another order",
        within_rounding,
    ),
    Change(
        r"measure/.*(attack|all bounds).*",
        r"samples/attack_.*",
        "the minimum distance is searched for with restarts and toward more classes",
        not_farther,
    ),
    Change(
        r"measure/.*(attack|all bounds).*",
        r"norms/.*",
        "totals of the distances, and comparisons with them",
        present,
    ),
    Change(
        r"measure/.*(certified|all bounds).*",
        r"samples/certified_.*|norms/.*/certified",
        "certified bounds leave room for all rounding, and lines below the activations are chosen",
        no_worse_certificate,
    ),
    Change(
        r"robust_accuracy/.*",
        r"diagnosis/(cross_entropy_underflow|gap_underflow|large_eps|at_large_eps)",
        "the diagnosis of gradient masking has no absolute units and no radius from one batch any "
        "more",
        gone,
    ),
    Change(
        r"robust_accuracy/.*",
        r"diagnosis/.*",
        "the diagnosis rests on other evidence",
        present,
    ),
    Change(
        r"robust_accuracy/.*",
        r"robust_accuracy/worst",
        "what the diagnosis finds within a radius counts as broken",
        not_more,
    ),
)


def change_of(situation: str, key: str, stored: str, found: str | None) -> Change | None:
    """The change that explains a difference."""
    for change in CHANGES:
        named = re.fullmatch(change.situations, situation) and re.fullmatch(change.keys, key)
        if named and change.holds(stored, found):
            return change
    return None
