"""Repeated measurements of one thing, and ratios of two things measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Order of preference: a ratio is only taken between times that were measured the same way.
METHODS = ("wall", "graph", "events")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


@dataclass
class Measured:
    """Times of one contender: by method, the seconds a call took in each round.

    Attributes:
        rounds: "wall" on CPU; "graph" (replay of a captured graph), "events" (device time of calls
            issued one by one) and "host" (time to issue one call) on CUDA.
        peak_bytes: Most memory that one call held beyond what was held before it.
        launches: Kernels that one call launches; None on CPU.
        failure: Why there is no time, in words.
    """

    rounds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    launches: int | None = None
    failure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        times = {
            method: {**spread(values), "best": min(values), "rounds": len(values)}
            for method, values in self.rounds.items()
        }
        shown: dict[str, Any] = {"times": times, "peak_bytes": self.peak_bytes}
        if self.launches is not None:
            shown["launches"] = self.launches
        if self.failure is not None:
            shown["failure"] = self.failure
        return shown


def ratio(over: Measured, under: Measured) -> dict[str, Any] | None:
    """Time of one contender over that of another, round by round: drift of the machine cancels."""
    for method in METHODS:
        if method in over.rounds and method in under.rounds:
            pairs = zip(over.rounds[method], under.rounds[method], strict=False)
            return {**spread([a / b for a, b in pairs]), "method": method}
    return None


def ratios_to(name: str, contenders: Mapping[str, Measured]) -> dict[str, Any]:
    """Every other contender over the one of this name, where both were timed."""
    if name not in contenders:
        return {}
    found = {
        other: ratio(measured, contenders[name])
        for other, measured in contenders.items()
        if other != name
    }
    return {other: value for other, value in found.items() if value is not None}
