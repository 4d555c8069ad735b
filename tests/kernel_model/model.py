"""Counts what a kernel issues for a sample, by following its machine code.

The emulator (tests/simt) makes the launch: the policy's threads and blocks, and the kernel's
parameters. Nothing of this ran on a GPU, and every percentage is a model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from backends.simt import Simt, kernels

from kernel_model.cases import Case, Inputs
from kernel_model.code import kernel_named, resources
from kernel_model.devices import DEVICES, Device
from kernel_model.machine import Launch, Trace, follow
from kernel_model.sass import Kernel

__all__ = ["Count", "count"]

VARIANTS = ("warp", "block", "reread")


@dataclass(frozen=True)
class Count:
    """What a case does on a device, by count.

    Attributes:
        kernel: The mangled name of the kernel.
        variant, threads, cluster_size, blocks, shared_bytes: How it is launched.
        launches: The kernels that the call launches.
        allocations: The tensors that it allocates.
        issued: Instructions a sample, of all warps of its group.
        per_byte: The same, for each byte that is moved at least.
        once: The bytes that are moved at least, of those that all passes together access.
        registers, spilled: A thread's, and its bytes of local memory.
        resident: Blocks on a multiprocessor.
        in_flight: Bytes that a multiprocessor has requested, at most.
        reread: The bytes that the cache must hold for the passes after a row's first, over the
            whole device.
        trace: What the first warp issued for the larger of the two batches.
    """

    kernel: str
    variant: str
    threads: int
    cluster_size: int
    blocks: int
    shared_bytes: int
    launches: int
    allocations: int
    issued: float
    per_byte: float
    once: float
    registers: int
    spilled: int
    resident: int
    in_flight: int
    reread: int
    trace: Trace

    def expected(self, device: Device) -> float:
        """Return the expected part of a clone's speed: issue slots at 60 %, and 30 % of doubt.

        What is read again comes from the cache, or where that is too small, from memory.
        """
        slots = 0.6 * 4 * device.clock * device.multiprocessors / self.per_byte
        moved = 1.0 if self.reread <= device.cache_bytes else self.once
        return min(moved, slots / device.clone_bytes_per_second)


@contextmanager
def _emulating(device: Device) -> Iterator[Any]:
    """The emulator as this device, which records launches and does not execute them."""
    module = kernels()
    emulated = module.device()
    traits = {
        "number": 1 + DEVICES.index(device),
        "multiprocessors": device.multiprocessors,
        "cluster_limit": device.max_cluster,
        "dynamic_shared_limit": device.shared_per_block,
        "shared_per_multiprocessor": device.shared_per_multiprocessor,
    }
    before = {name: getattr(emulated, name) for name in traits}
    for name, value in traits.items():
        setattr(emulated, name, value)
    module.record_only(True)
    try:
        yield module
    finally:
        module.record_only(False)
        for name, value in before.items():
            setattr(emulated, name, value)


@cache
def count(case: Case, device: Device) -> Count:
    """Count what a sample costs: a launch with more samples less one with fewer."""
    made = Inputs(case)
    simt = Simt(allocate=made.output)
    with _emulating(device) as module:
        before = module.launches()
        case.call(simt, made)
        launches = module.launches() - before
        parameters = module.recorded_parameters()
    report = simt.report
    kernel = kernel_named(case.source, device.architecture, case.pattern(report.variant))
    fewer, more = (
        _traces(kernel, case.with_samples(parameters, samples), device, case, report)
        for samples in case.samples
    )
    per_warp = [b.total - a.total for a, b in zip(fewer, more, strict=True)]
    warps = case.sharing(report) // 32
    first, other = per_warp[0], per_warp[-1]
    more_samples = (case.samples[1] - case.samples[0]) / case.groups  # of the group
    issued = (first + (warps - 1) * other) * report.cluster_size / more_samples
    registers, spilled, static = resources(case.source, device.architecture)[kernel.name]
    resident = _resident_blocks(device, report, registers, static)
    loaded = (more[0].bytes_loaded - fewer[0].bytes_loaded) * 32
    stored = (more[0].bytes_stored - fewer[0].bytes_stored) * 32
    accessed = (loaded + stored) * warps * report.cluster_size / more_samples
    copied = more[0].issued["LDGSTS"] > 0  # the whole row is requested at once
    at_a_time = loaded if copied else min(loaded, _batch_bytes(kernel))
    samples_at_a_time = resident * (report.threads // 32 // warps) * device.multiprocessors
    return Count(
        kernel.name,
        VARIANTS[report.variant],
        report.threads,
        report.cluster_size,
        report.blocks,
        report.shared_bytes,
        launches,
        made.outputs + case.scratch,
        issued,
        issued / case.bytes,
        min(1.0, case.bytes / accessed) if accessed else 1.0,
        registers,
        spilled,
        resident,
        resident * report.threads // 32 * at_a_time,
        min(samples_at_a_time // report.cluster_size, case.batch) * case.reread,
        more[0],
    )


def _traces(
    kernel: Kernel, parameters: bytes, device: Device, case: Case, report: Any
) -> list[Trace]:
    """What the first two warps of a group issue (a group may be one warp)."""
    threads = case.sharing(report)
    shared: dict[int, int] = {}
    return [
        follow(
            kernel,
            Launch(
                device.architecture,
                parameters,
                threads,
                report.cluster_size * case.groups,
                warp,
                report.cluster_size,
            ),
            shared,
        )
        for warp in range(min(threads // 32, 2))
    ]


def _resident_blocks(device: Device, report: Any, registers: int, static_bytes: int) -> int:
    """The blocks that a multiprocessor holds, by registers, shared memory, threads and the grid."""
    by_registers = 65536 // (-(-registers // 8) * 8 * report.threads)
    by_shared = device.shared_per_multiprocessor // (report.shared_bytes + static_bytes + 1024)
    by_threads = device.threads_per_multiprocessor // report.threads
    by_grid = -(-report.blocks // device.multiprocessors)
    return int(min(by_registers, by_shared, by_threads, by_grid, 32))


def _batch_bytes(kernel: Kernel) -> int:
    """The bytes that a warp requests before it waits: its longest run of 16-byte loads."""
    longest = run = 0
    for i in kernel.code:
        if i.name == "LDG" and "128" in i.suffixes:
            run += 1
            longest = max(longest, run)
        elif i.name in ("FFMA", "FMUL", "STS", "BRA") and "128" not in i.suffixes:
            run = 0 if i.name != "BRA" else run
    return longest * 512
