"""The tables of docs/evaluation.md, made from the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.instruments import (
    DISTANCES,
    OURS,
    RADIUS_ATTACKS,
    REFERENCE,
    Instrument,
)

__all__ = ["figures", "write_tables"]

_BEGIN, _END = "<!-- begin: {} -->", "<!-- end: {} -->"
# The goal: robust accuracy within a point of the peers' worst case.
_POINT = 0.01


def figures(entry: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Robust accuracy and CPU seconds of each attack, with those that ran before it."""
    found = {}
    for one in RADIUS_ATTACKS:
        if one.name in entry["attacks"]:
            parts = [entry["attacks"][name] for name in (*one.after, one.name)]
            robust = _robust(entry, [part["broken"] for part in parts])
            found[one.name] = (float(robust.mean()), sum(part["seconds"] for part in parts))
    return found


def write_tables(
    results: dict[str, dict[str, Any]], exact: dict[str, Any] | None, page: Path
) -> None:
    """Put the tables between their marks in the page.

    Args:
        results: The results of each case, by its name.
        exact: Our distances next to exact ones; None: not measured.
        page: The page.
    """
    text = page.read_text()
    norms = {norm: _of_norm(results, norm) for norm in ("l2", "linf", "l1")}
    tables = {
        "radius": [line for p, cases in norms.items() if cases for line in _radius(cases, p)],
        "distances": [line for p, cases in norms.items() if cases for line in _distances(cases, p)],
        "exact": [] if exact is None else _exact(exact),
    }
    for name, lines in tables.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"{page} has no marks {begin} and {end}")
        text = "\n".join([head + begin, *lines, end + tail])
    page.write_text(text)


def _robust(entry: dict[str, Any], broken: Sequence[str]) -> NDArray[np.bool_]:
    robust = _flags(entry["correct"])
    for bits in broken:
        robust &= ~_flags(bits)
    return robust


def _flags(bits: str) -> NDArray[np.bool_]:
    return np.array([bit == "1" for bit in bits])


def _radius(cases: dict[str, dict[str, Any]], norm: str) -> list[str]:
    """One row a case: robust accuracy (CPU seconds) by attack, the worst cases and the goals."""
    columns = [
        one
        for one in RADIUS_ATTACKS
        if any(one.name in entry["attacks"] for entry in cases.values())
    ]
    goals = ["worst of the peers", "within a point", "sooner"]
    lines = _head([f"{norm}: network, radius", *map(_titled, columns), *goals])
    for name, entry in cases.items():
        found = figures(entry)
        cells = [
            "{:.3f} ({:.0f} s)".format(*found[one.name]) if one.name in found else "not run"
            for one in columns
        ]
        peers = [one.name for one in columns if one.library != OURS and one.name in found]
        worst = float(_robust(entry, [entry["attacks"][peer]["broken"] for peer in peers]).mean())
        reached = ["not run"] * 3
        if "nearest" in found and peers:
            ours, seconds = found["nearest"]
            rivals = [found[peer][1] for peer in peers if found[peer][0] <= ours]
            within = ours <= worst + _POINT + 1e-9
            reached = [
                f"{worst:.3f}",
                "yes" if within else f"no: {100 * (ours - worst):.1f}",
                "yes" if seconds < min(rivals, default=math.inf) else "no",
            ]
        label = f"{name.rpartition('/')[0]}, {entry['eps']:.3g}"
        lines.append(_row([label, *cells, *reached]))
    return [*lines, ""]


def _distances(cases: dict[str, dict[str, Any]], norm: str) -> list[str]:
    """One row a case: mean distance over the nearest of all peers, and how often it is farther."""
    columns = [
        one for one in DISTANCES if any(one.name in entry["distances"] for entry in cases.values())
    ]
    head = _head([f"{norm}: network", *map(_titled, columns)])
    lines = []
    for name, entry in cases.items():
        found = {
            key: np.array([math.inf if d is None else d for d in one["distance"]])
            for key, one in entry["distances"].items()
        }
        peers = [found[one.name] for one in columns if one.library != OURS and one.name in found]
        if not peers:
            continue
        best = np.minimum.reduce(peers)
        cells = []
        for one in columns:
            if one.name not in found:
                cells.append("not run")
                continue
            distance = found[one.name]
            both = np.isfinite(distance) & np.isfinite(best)
            farther = float((distance > 1.01 * best).mean())
            seconds = entry["distances"][one.name]["seconds"]
            ratio = (distance[both] / best[both]).mean()
            cells.append(f"{ratio:.3f}, {farther:.0%} ({seconds:.0f} s)")
        lines.append(_row([name.rpartition("/")[0], *cells]))
    return [*head, *lines, ""] if lines else []


def _exact(results: dict[str, Any]) -> list[str]:
    """One row a search: its distances over the exact ones."""
    exact = np.array(results["exact"])
    lines = _head(["search", "points", "mean", "more than 1 % farther", "worst", "CPU seconds"])
    for one in DISTANCES:
        if one.library == OURS and one.name in results:
            found = results[one.name]
            ratio = np.array(found["distance"]) / exact
            cells = [f"{ratio.mean():.4f}", f"{(ratio > 1.01).mean():.1%}", f"{ratio.max():.2f}"]
            lines.append(_row([one.title, str(len(exact)), *cells, f"{found['seconds']:.1f}"]))
    return lines


def _of_norm(results: dict[str, dict[str, Any]], norm: str) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in results.items() if entry["p"] == norm}


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _titled(one: Instrument) -> str:
    return (
        one.title
        if one.library in (OURS, REFERENCE, "pyautoattack")
        else f"{one.library} {one.title}"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
