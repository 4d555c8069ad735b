"""What the model knows of GPUs, by NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEVICES", "Device"]


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: Its name.
        architecture: 90 for sm_90.
        multiprocessors: Their number.
        shared_per_multiprocessor: Bytes of shared memory.
        shared_per_block: The most of them that a block may ask for.
        clone_bytes_per_second: The bandwidth of a clone.
        clock: The boost clock, in Hz.
        bytes_in_flight: What a multiprocessor must have requested to use the bandwidth, by the
            table of minimum bytes in flight in CUB.
        cache_bytes: The second-level cache.
        max_cluster: The largest cluster; 1: there are none.
        threads_per_multiprocessor: The most that can be resident.
    """

    name: str
    architecture: int
    multiprocessors: int
    shared_per_multiprocessor: int
    shared_per_block: int
    clone_bytes_per_second: float
    clock: float
    bytes_in_flight: int
    cache_bytes: int
    max_cluster: int = 8
    threads_per_multiprocessor: int = 2048


DEVICES = (
    Device("H100", 90, 132, 228 << 10, 227 << 10, 3.0e12, 1.755e9, 32 << 10, 50 << 20),
    Device("H200", 90, 132, 228 << 10, 227 << 10, 4.3e12, 1.755e9, 48 << 10, 50 << 20),
    Device("B200", 100, 148, 228 << 10, 227 << 10, 7.0e12, 1.85e9, 64 << 10, 126 << 20),
    Device("A100", 80, 108, 164 << 10, 163 << 10, 1.75e12, 1.41e9, 16 << 10, 40 << 20, 1),
)
