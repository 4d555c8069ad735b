"""Tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.figures import seconds
from benchmarks.goals import Verdict
from benchmarks.step_losses import LOSSES, PLAIN
from benchmarks.steps import MATH, REFERENCE

NOTHING = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def duration(value: float | None) -> str:
    if value is None:
        return NOTHING
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def volume(value: float | None) -> str:
    if value is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def times(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} x" if ratio else NOTHING


def goals(verdicts: Iterable[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        if verdict.reached is None:
            rows.append([verdict.goal, NOTHING, NOTHING, "not measured"])
        else:
            word = "reached" if verdict.reached else "**not reached**"
            rows.append([verdict.goal, verdict.figure or NOTHING, verdict.where, word])
    return table(["Goal", "Worst measured", "At", "Verdict"], rows)


def kernels(cases: Iterable[dict[str, Any]], device: str) -> str:
    """One row a case: time and bandwidth of the fused op, and the others relative to it.

    On the CPU also its time in fresh memory, over a clone there.
    """
    yardstick = "copy" if device == "cpu" else "negation"
    head = ["Shape", "Fused", "GB/s", f"x {yardstick}", "Eager", "torch.compile", "Peak memory"]
    head += ["Launches", "Host time"] if device == "cuda" else ["Fresh: fused", "x clone"]
    rows = []
    for case in cases:
        fused = case["contenders"]["fused"]
        time = seconds(fused)
        row = [
            f"{case['name'].split(': ', 1)[-1]}<br>{case['shape']['reason']}",
            duration(time) + _how(fused, device),
            f"{case['moved_bytes'] / time / 1e9:.3g}" if time else NOTHING,
            times(case["over_yardstick"].get("fused")),
            times(case["over_fused"].get("reference")),
            times(case["over_fused"].get("compiled")),
            _memory(case),
        ]
        if device == "cuda":
            host = fused["times"].get("host")
            row += [_launches(case), duration(host and host["median"])]
        else:
            fresh = case["fresh_memory"].get("fused")
            row += [
                duration(fresh and seconds(fresh)),
                times(case["fresh_over_clone"].get("fused")),
            ]
        rows.append(row)
    return table(head, rows)


def _how(contender: dict[str, Any], device: str) -> str:
    """A mark where the time holds that of the host: the call could not be captured in a graph."""
    return " (host too)" if device == "cuda" and "graph" not in contender["times"] else ""


def _memory(case: dict[str, Any]) -> str:
    """Fused, and the reference's as a multiple."""
    fused = case["contenders"]["fused"]["peak_bytes"]
    reference = case["contenders"]["reference"]["peak_bytes"]
    if not fused or not reference:
        return volume(fused)
    return f"{volume(fused)} (eager {reference / fused:.1f} x)"


def _launches(case: dict[str, Any]) -> str:
    """Fused, and in brackets the reference's."""
    fused, reference = (case["contenders"][n].get("launches") for n in ("fused", "reference"))
    return f"{fused} (eager {reference})"


def training_step(case: dict[str, Any]) -> str:
    """One row a way to train: time, memory and the kernels' share."""
    contenders, ratios = case["contenders"], case["over_yardstick"]
    plain = contenders[PLAIN]
    rows = []
    for name, contender in contenders.items():
        if name.endswith(REFERENCE):
            continue
        share = case["kernel_share"].get(name)
        base = plain["peak_bytes"]
        failed = contender.get("failure")
        rows.append(
            [
                _step_title(name),
                f"not possible: {_cell(failed)}" if failed else duration(seconds(contender)),
                "1 x" if name == PLAIN else times(ratios.get(name)),
                times(ratios.get(name + REFERENCE)),
                f"{contender['peak_bytes'] / base:.2f} x" if not failed and base else NOTHING,
                f"{100 * share:.1f} %" if share is not None and name != PLAIN else NOTHING,
            ]
        )
    head = ["", "Step", "Over plain", "Over plain, reference", "Peak memory", "Kernels' share"]
    return table(head, rows)


def _step_title(name: str) -> str:
    bare = name.removesuffix(MATH)
    title = LOSSES[bare].title if bare in LOSSES else f"`{bare}`"
    return title + MATH * name.endswith(MATH)


def call_overhead(case: dict[str, Any]) -> str:
    rows = [
        [name, duration(seconds(contender)), times(case["over_yardstick"].get(name))]
        for name, contender in case["contenders"].items()
    ]
    return table(["", "A call", "Over cross_entropy"], rows)


def bounds(content: dict[str, Any]) -> str:
    """The times a sample of every way to estimate the bounds, and their ratios."""
    medians = content.get("median_seconds_a_sample", {})
    ratios = content.get("ratios_of_medians", {})
    rows = [[name.replace("_", " "), duration(value)] for name, value in medians.items()]
    rows += [[name.replace("_", " "), f"{value:.2f} x"] for name, value in ratios.items()]
    return table(["", "A sample, or ratio"], rows)


def _cell(text: str, limit: int = 90) -> str:
    """Text that does not break the table."""
    flat = " ".join(text.replace("|", "/").split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
