"""Peak memory, kernel launches and the kernels' share of a call, from torch.profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_OURS = "margin_ext::"


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most memory that a call held at once beyond what was held before it, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    ]
    held = highest = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        highest = max(highest, held)
    return highest


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that a call puts on the GPU."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events())


def kernel_share(call: Callable[[], object], device: str) -> float:
    """Which part of a call's time is spent in margin_ext's own ops.

    On CPU the time inside the ops, of the wall time inside any op; on CUDA the time of their
    kernels, of the time of all kernels.
    """
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    call()
    with profile(activities=activities) as profiler:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    ours = total = 0.0
    for entry in profiler.key_averages():
        spent = entry.self_device_time_total if device == "cuda" else entry.self_cpu_time_total
        if device == "cuda" and entry.device_type == DeviceType.CUDA:
            continue  # the same time once more, under the kernel's own name
        total += spent
        if entry.key.startswith(_OURS):
            ours += spent
    return ours / total if total else 0.0
