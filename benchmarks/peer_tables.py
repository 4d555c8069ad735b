"""The peers' part of the report: who is quicker at equal answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evaluation.instruments import OURS
from benchmarks.peer_calls import CLEVER, DISTANCE
from benchmarks.peer_problems import NETWORKS
from benchmarks.tables import NOTHING, table

_HOW = """\
`python -m benchmarks.peers`; `pip install 'margin_ext[peers]'` brings the other libraries. Images a
second of CPU time, on images that the network classifies right, p = 2, inputs in [0, 1]. Distances
are those of adversarial examples, judged by one function; of our searches (`MinimumDistance` with
the settings that are named) the quickest stands here whose answers are equal or nearer: a mean
distance of at most 1.001 of the peer's, and not more images farther by over 1 % than nearer by over
1 %. Where none is, the row says so, and the nearest one stands here. Margins are first-order
margins, a peer's from the gradients of `torch.func.jacrev` (all classes) or captum (the runner-up).
CLEVER is an estimate from random points, 640 an image for both. The small networks are trained for
a minute or two; ResNet-50 has random weights, and its images are noise. The goal is to be ahead of
each at equal answers.
"""
_HEAD = ("Peer", "Images/s", "Ours", "Images/s", "Factor", "Answers, ours over theirs", "Goal")
_COLLAPSED = 0.01
_MEAN, _ONE_PERCENT, _EQUAL, _ESTIMATE = 1.001, 0.01, 1e-3, 0.1


@dataclass(frozen=True)
class _Agreement:
    """Our answers against a peer's.

    Attributes:
        good: Ours are equal, or nearer.
        rank: Smaller is better, to choose between answers that are not good.
        words: For the table.
    """

    good: bool
    rank: float
    words: str


def peers(content: dict[str, Any]) -> Iterator[str]:
    """The section, a table for each network."""
    yield _HOW.strip()
    versions = {
        one["library"]: one["version"] for case in content["cases"] for one in case["contenders"]
    }
    yield "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    reached = total = 0
    for network in dict.fromkeys(case["network"] for case in content["cases"]):
        cases = [case for case in content["cases"] if case["network"] == network]
        rows = list(_rows(cases))
        reached += sum(row[-1] == "reached" for row in rows)
        total += len(rows)
        most = max(one["images"] for case in cases for one in case["contenders"])
        title = f"{cases[0]['title']}, {most} image{'s' * (most > 1)}"
        if network == "mnist_cnn":
            title += ", MNIST" if content["settings"].get("mnist") else ", digits enlarged"
        yield f"**{title}**:"
        yield table(_HEAD, rows)
    yield f"Ahead at equal answers in {reached} of {total} rows."
    names = {case["network"] for case in content["cases"]}
    missing = [network.title for network in NETWORKS if network.name not in names]
    if missing and not content.get("quick"):
        yield f"Not measured here: {'; '.join(missing)}."


def _rows(cases: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    every = [(case["task"], one) for case in cases for one in case["contenders"]]
    for task, peer in every:
        if peer["library"] == OURS:
            continue
        ours = [one for of, one in every if of == task and one["library"] == OURS]
        if ours:
            yield _row(task, peer, ours)


def _row(task: str, peer: dict[str, Any], ours: Sequence[dict[str, Any]]) -> list[str]:
    found = [(_agreement(task, one, peer), one) for one in ours]
    good = [(of, one) for of, one in found if of.good]
    if good:
        agreement, chosen = max(good, key=lambda pair: _rate(pair[1]))
    else:
        agreement, chosen = min(found, key=lambda pair: pair[0].rank)
    factor = _rate(chosen) / _rate(peer)
    goal = "reached" if factor >= 1 else "**behind**"
    if not agreement.good:
        goal = "**other answers**"
    name = f"{peer['library']}: {peer['title']}"
    if task == DISTANCE:
        none = sum(answer is None for answer in peer["answers"])
        name += f" (found none on {none} of {len(peer['answers'])})" if none else ""
    few = f" ({peer['images']} images)" if peer["images"] < chosen["images"] else ""
    return [
        name + few,
        f"{_rate(peer):.3g}",
        chosen["title"],
        f"{_rate(chosen):.3g}",
        f"{factor:.2f} x",
        agreement.words or NOTHING,
        goal,
    ]


def _rate(one: dict[str, Any]) -> float:
    return float(one["images"] / statistics.median(one["seconds"]))


def _agreement(task: str, ours: dict[str, Any], peer: dict[str, Any]) -> _Agreement:
    pairs = [
        (math.inf if mine is None else mine, theirs)
        for mine, theirs in zip(ours["answers"], peer["answers"], strict=False)
        if theirs is not None
    ]
    ratios = [mine / theirs for mine, theirs in pairs if theirs]
    if not ratios:
        return _Agreement(True, 0.0, "the peer found none")
    if task == DISTANCE:
        mean = statistics.fmean(ratios)
        farther = sum(ratio > 1 + _ONE_PERCENT for ratio in ratios) / len(ratios)
        nearer = sum(ratio < 1 - _ONE_PERCENT for ratio in ratios) / len(ratios)
        words = f"mean {mean:.3f}, farther {100 * farther:.0f} %, nearer {100 * nearer:.0f} %"
        return _Agreement(mean <= _MEAN and farther <= nearer, mean, words)
    if task == CLEVER:
        collapsed = [mine for mine, theirs in pairs if theirs < _COLLAPSED * mine]
        middle = statistics.median(ratios)
        words = f"median {middle:.3f}"
        if collapsed:
            words += f"; {len(collapsed)} of the peer's {len(pairs)} fits collapse"
        return _Agreement(abs(middle - 1) <= _ESTIMATE, abs(middle - 1), words)
    off = max(abs(ratio - 1) for ratio in ratios)
    return _Agreement(off <= _EQUAL, off, f"equal to {off:.0e}")
