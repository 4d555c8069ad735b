"""The model's table as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from kernel_model.cases import CASES, Case
from kernel_model.devices import DEVICES, Device
from kernel_model.model import count

__all__ = ["table"]

_COLUMNS = (
    *(
        "op",
        "batch",
        "GPU",
        "variant",
        "threads",
        "cluster",
        "launches",
        "allocations",
        "instructions a byte",
    ),
    *("registers", "spilled", "blocks an SM", "KB in flight", "MB read again", "% of a clone"),
)


def table(cases: Iterable[Case] = CASES, devices: Iterable[Device] = DEVICES) -> str:
    """Return a line for each case on each device."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    devices = tuple(devices)
    for case in cases:
        for device in devices:
            c = count(case, device)
            lines.append(
                f"| {case.op} | {case} | {device.name} | {c.variant} | {c.threads} "
                f"| {c.cluster_size} | {c.launches} | {c.allocations} | {c.per_byte:.3f} "
                f"| {c.registers} | {c.spilled} | {c.resident} | {c.in_flight / 1024:.0f} "
                f"| {c.reread / 2**20:.0f} | {100 * c.expected(device):.0f} |"
            )
    return "\n".join(lines)
