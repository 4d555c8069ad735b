"""The goals that the package is held to, and whether results reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.call_overhead import SMALL, WHOLE
from benchmarks.jobs import TRAINING_JOB

_TEN_MB = 10_000_000
_SHORT = 784  # rows whose own cost counts beside that of their bytes
_LARGE = 300_000_000
_READS_ONLY = "first_order_margin, forward"

Case = dict[str, Any]
Files = dict[str, dict[str, Any]]  # by part


@dataclass(frozen=True)
class Verdict:
    """One goal and what was measured.

    Attributes:
        goal: In words.
        figure: The worst that was measured, in words; None where nothing was.
        where: The case that it was measured at.
        reached: Whether the worst case reaches the goal; None where nothing was measured.
    """

    goal: str
    figure: str | None = None
    where: str = ""
    reached: bool | None = None


def cpu_verdicts(files: Files) -> list[Verdict]:
    found = []
    training = [case for case in _cases(files, "kernels") if case["job"] == TRAINING_JOB.name]
    for dtype in ("fp32", "bf16", "fp16"):
        cases = [case for case in training if case["shape"]["dtype"] == dtype]
        large = [
            case
            for case in cases
            if case["shape"]["grad_bytes"] >= _TEN_MB and case["shape"]["size"] > _SHORT
        ]
        what = f"loss, forward and backward, {dtype}"
        found += [
            _at_most(f"{what}: at most 1.3 x a copy from 10 MB", large, _over_yardstick, 1.3),
            _at_least(f"{what}: at least 5 x eager at every size", cases, _over("reference"), 5),
            _at_least(
                f"{what}: at least 3 x torch.compile at every size", cases, _over("compiled"), 3
            ),
        ]
    short = [
        case
        for case in training
        if case["shape"]["grad_bytes"] >= _TEN_MB and case["shape"]["size"] <= _SHORT
    ]
    overhead = list(_cases(files, "call_overhead"))
    found += [
        _at_most("loss at 4096 x 784: at most 1.6 x a copy", short, _over_yardstick, 1.6),
        _at_most(
            "loss at 128 x 784: at most 3 x an autograd.Function that does nothing",
            [case for case in overhead if case["shape"] == SMALL.name],
            lambda case: case["over_nothing"][WHOLE]["median"],
            3,
        ),
        _at_most(
            "call overhead of the loss, forward and backward: under 90 us",
            [case for case in overhead if case["shape"] != SMALL.name],
            lambda case: case["contenders"][WHOLE]["times"]["wall"]["median"] * 1e6,
            90,
            unit=" us",
        ),
    ]
    return found


def cuda_verdicts(files: Files) -> list[Verdict]:
    kernels = list(_cases(files, "kernels"))
    training = [case for case in kernels if case["job"] == TRAINING_JOB.name]
    large = [case for case in training if case["moved_bytes"] >= _LARGE]
    long_rows = [case for case in large if case["shape"]["size"] >= 4096]
    short_rows = [case for case in large if 784 <= case["shape"]["size"] <= 3072]
    reading = [
        case
        for case in kernels
        if case["job"] == _READS_ONLY
        and case["shape"]["size"] >= 16_384
        and case["moved_bytes"] >= _LARGE
    ]
    cifar = [
        case for case in training if (case["shape"]["batch"], case["shape"]["size"]) == (128, 3072)
    ]
    peak = ((files.get("kernels") or {}).get("environment", {}).get("gpu") or {}).get(
        "peak_bytes_per_s"
    )

    def of_copy(case: Case) -> float | None:
        over = case["over_yardstick"].get("fused")
        # Otherwise the time holds that of the host.
        return 100 / over["median"] if over and over["method"] == "graph" else None

    def of_peak(case: Case) -> float | None:
        seconds = _seconds(case, "fused")
        return 100 * case["moved_bytes"] / seconds / peak if seconds and peak else None

    return [
        _at_least("read + write: 97 % of a copy, D >= 4096", long_rows, of_copy, 97, unit=" %"),
        _at_least("read + write: 90 % of a copy, D 784 to 3072", short_rows, of_copy, 90, " %"),
        _at_least("read only: 90 % of peak, D >= 16384", reading, of_peak, 90, unit=" %"),
        _at_most(
            "128 x 3072: two launches a step",
            cifar,
            lambda case: case["contenders"]["fused"].get("launches"),
            2,
            unit="",
        ),
        _at_least("128 x 3072: at least 10 x eager", cifar, _over("reference"), 10),
        _at_least("128 x 3072: at least 3 x torch.compile", cifar, _over("compiled"), 3),
    ]


def _cases(files: Files, part: str) -> Iterable[Case]:
    return files[part]["cases"] if part in files else []


def _over_yardstick(case: Case) -> float | None:
    found = case["over_yardstick"].get("fused")
    return found and found["median"]


def _over(name: str) -> Callable[[Case], float | None]:
    def times_fused(case: Case) -> float | None:
        found = case["over_fused"].get(name)
        return found and found["median"]

    return times_fused


def _seconds(case: Case, contender: str) -> float | None:
    times = case["contenders"][contender]["times"]
    return next((times[m]["median"] for m in ("wall", "graph", "events") if m in times), None)


def _figures(
    cases: Iterable[Case], figure: Callable[[Case], float | None]
) -> Iterator[tuple[float, str]]:
    for case in cases:
        value = figure(case)
        if value is not None:
            yield value, case["name"].split(": ", 1)[-1]


def _at_most(
    goal: str,
    cases: Iterable[Case],
    figure: Callable[[Case], float | None],
    limit: float,
    unit: str = " x",
) -> Verdict:
    worst = max(_figures(cases, figure), default=None)
    if worst is None:
        return Verdict(goal)
    return Verdict(goal, f"{worst[0]:.3g}{unit}", worst[1], worst[0] <= limit)


def _at_least(
    goal: str,
    cases: Iterable[Case],
    figure: Callable[[Case], float | None],
    limit: float,
    unit: str = " x",
) -> Verdict:
    worst = min(_figures(cases, figure), default=None)
    if worst is None:
        return Verdict(goal)
    return Verdict(goal, f"{worst[0]:.3g}{unit}", worst[1], worst[0] >= limit)
