"""Timing on CUDA, where a call returns before its work is done and L2 hides memory.

Two figures for each contender. "graph": calls on different buffers, together well past the L2,
captured into one CUDA graph and replayed: time on the device without that of the host. "events":
the same calls issued one by one, as a program does: for small sizes that is the host's time, which
"host" gives by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.samples import Measured
from benchmarks.timing import Contender, Effort, collector_off, rotations

_REPLAY_SECONDS = 4e-3  # long against the resolution of events, 0.5 us, and against launch jitter
_L2_TIMES = 3  # buffers that together take this many times the L2 find nothing of theirs in it
_MOST_BUFFERS = 256
_MOST_ISSUED = 50


def buffers_past_l2(bytes_moved: int) -> int:
    """How many sets of inputs to rotate over."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(1, min(_MOST_BUFFERS, math.ceil(_L2_TIMES * l2 / max(bytes_moved, 1))))


@dataclass
class _Captured:
    """A graph of one call per buffer; ``kept`` holds what the graph reads and writes."""

    graph: torch.cuda.CUDAGraph
    calls: int
    kept: list[Any]


def time_on_cuda(
    contenders: Mapping[str, Contender], inputs: Sequence[Any], effort: Effort
) -> dict[str, Measured]:
    """Time of a call of each contender, in interleaved rounds; ``inputs`` has one per buffer."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    found = {name: Measured() for name in contenders}
    with torch.cuda.stream(stream):
        graphs = {}
        for name, contender in contenders.items():
            captured = _capture(contender, inputs, stream)
            if captured is None:
                # It synchronises, as code does that asks the device for a value: no graph.
                continue
            graphs[name] = captured
        _time_graphs(graphs, found, effort)
        graphs.clear()
        _time_issued(contenders, inputs, found, effort)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return found


def _capture(
    contender: Contender, inputs: Sequence[Any], stream: torch.cuda.Stream
) -> _Captured | None:
    for _ in range(3):  # compilation, lazy loading of kernels, workspaces: none may be captured
        contender.call(contender.ready(inputs[0]))
    ready = [contender.ready(one) for one in inputs]
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Results are kept, so that every call writes to memory of its own.
    kept: list[Any] = []
    try:
        with torch.cuda.graph(graph, stream=stream):
            kept.extend(contender.call(state) for state in ready)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    graph.replay()
    stream.synchronize()
    return _Captured(graph, len(ready), [ready, kept])


def _elapsed(issue: Callable[[], None]) -> float:
    """Seconds between events around what is issued, on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    issue()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _time_graphs(
    graphs: Mapping[str, _Captured], found: dict[str, Measured], effort: Effort
) -> None:
    replays = {}
    for name, captured in graphs.items():
        once = _elapsed(captured.graph.replay)
        replays[name] = max(1, math.ceil(_REPLAY_SECONDS / max(once, 1e-7)))
        found[name].rounds["graph"] = []
    if not graphs:
        return
    end = time.perf_counter() + effort.seconds
    for turn, order in enumerate(rotations(list(graphs), effort)):
        if turn >= effort.least_rounds and time.perf_counter() > end:
            break
        for name in order:
            captured, times = graphs[name], replays[name]

            def replay(graph: torch.cuda.CUDAGraph = captured.graph, times: int = times) -> None:
                for _ in range(times):
                    graph.replay()

            found[name].rounds["graph"].append(_elapsed(replay) / (times * captured.calls))


def _time_issued(
    contenders: Mapping[str, Contender],
    inputs: Sequence[Any],
    found: dict[str, Measured],
    effort: Effort,
) -> None:
    for name in contenders:
        found[name].rounds.update(events=[], host=[])
    count = max(1, min(_MOST_ISSUED, len(inputs)))
    chosen = inputs[:count]
    end = time.perf_counter() + effort.seconds
    with collector_off():
        for turn, order in enumerate(rotations(list(contenders), effort)):
            if turn >= effort.least_rounds and time.perf_counter() > end:
                break
            for name in order:
                contender = contenders[name]
                ready = [contender.ready(one) for one in chosen]
                host: list[float] = []

                def issue(
                    call: Callable[[Any], object] = contender.call,
                    ready: list[Any] = ready,
                    host: list[float] = host,
                ) -> None:
                    begun = time.perf_counter()
                    for state in ready:
                        call(state)
                    host.append((time.perf_counter() - begun) / len(ready))

                torch.cuda.synchronize()
                found[name].rounds["events"].append(_elapsed(issue) / len(ready))
                found[name].rounds["host"].append(host[0])
