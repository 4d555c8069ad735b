"""Counts what the loss kernel issues for a sample, by following its machine code.

The emulator (tests/simt) makes the launch: the policy's threads and blocks, and the kernel's
parameters. Nothing of this ran on a GPU, and every percentage is a model's.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from backends.simt import Simt, kernels
from simt.kernel_library import CSRC, ROOT
from torch import Tensor

from kernel_model.machine import Launch, Trace, follow
from kernel_model.sass import Kernel, disassemble

__all__ = ["DEVICES", "SHAPES", "Count", "Device", "Shape", "count", "resources"]

VARIANTS = ("warp", "block", "reread")


@dataclass(frozen=True)
class Device:
    """What the model knows of a GPU. The bandwidth is that of a clone; clocks are boost clocks."""

    name: str
    architecture: int
    multiprocessors: int
    shared_per_multiprocessor: int
    clone_bytes_per_second: float
    clock: float
    bytes_in_flight: int  # that an SM needs, by CUB's table of minimum bytes in flight
    shared_per_block: int
    threads_per_multiprocessor: int = 2048
    max_cluster: int = 8


DEVICES = (
    Device("H100", 90, 132, 228 << 10, 3.0e12, 1.755e9, 32 << 10, 227 << 10),
    Device("H200", 90, 132, 228 << 10, 4.3e12, 1.755e9, 48 << 10, 227 << 10),
    Device("B200", 100, 148, 228 << 10, 7.0e12, 1.85e9, 64 << 10, 227 << 10),
    Device("A100", 80, 108, 164 << 10, 1.75e12, 1.41e9, 16 << 10, 163 << 10, 2048, 1),
)


@dataclass(frozen=True)
class Shape:
    """A batch of the suite."""

    size: int
    dtype: torch.dtype
    batch: int
    classes: int = 10
    p: float = 2
    logits_dtype: torch.dtype | None = None
    scaled: bool = False

    @property
    def bytes(self) -> int:
        """Return the bytes that a sample moves: its row and logits, in and out."""
        logits = (self.logits_dtype or self.dtype).itemsize
        return 2 * self.size * self.dtype.itemsize + 2 * self.classes * logits

    def __str__(self) -> str:
        """Return a short name."""
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        extra = "" if self.p == 2 else f", p {self.p:g}"
        extra += "" if self.classes == 10 else f", C {self.classes}"
        return f"{self.batch} x {self.size} {kind}{extra}{', input_std' if self.scaled else ''}"


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPES = (
    *(Shape(784, kind, 4096) for kind in (F32, BF16, F16)),
    *(Shape(3072, kind, 1024) for kind in (F32, BF16, F16)),
    *(Shape(12_288, kind, 512) for kind in (F32, BF16)),
    *(Shape(150_528, kind, 128) for kind in (F32, BF16)),
    Shape(150_528, BF16, 128, classes=1000),
    Shape(3072, F32, 1024, p=1),
    Shape(3072, F32, 1024, p=float("inf")),
    Shape(3072, F32, 1024, scaled=True),
    Shape(150_528, F32, 128, scaled=True),
)


@dataclass(frozen=True)
class Count:
    """What a shape's kernel does, by count."""

    kernel: str
    variant: str
    threads: int
    cluster_size: int
    blocks: int
    shared_bytes: int
    row: int  # instructions a sample, of all warps of its group
    first_warp: int
    other_warp: int
    per_byte: float
    registers: int
    spilled: int
    resident: int  # blocks on a multiprocessor
    in_flight: int  # bytes that a multiprocessor has requested, at most
    trace: Trace

    def expected(self, device: Device) -> float:
        """Return the expected part of a clone's speed: issue slots at 60 %, and 30 % of doubt."""
        issued = 0.6 * 4 * device.clock * device.multiprocessors / self.per_byte
        return min(1.0, issued / device.clone_bytes_per_second)


def nvcc() -> str | None:
    """Return the compiler, where there is one."""
    return shutil.which("nvcc")


@cache
def compiled(source: str, architecture: int) -> tuple[tuple[Kernel, ...], str]:
    """Return the kernels of a source file, and what ptxas says of them. Kept in build/."""
    tool = nvcc()
    assert tool is not None
    state = hashlib.sha256()
    for file in sorted([*(CSRC / "core").glob("*.h"), *(CSRC / "cuda").glob("*.*")]):
        state.update(file.read_bytes())
    folder = ROOT / "build" / "kernel_model"
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{source}-{architecture}-{state.hexdigest()[:16]}.cubin"
    log = cubin.with_suffix(".txt")
    if not log.exists():
        command = [tool, "-std=c++20", "-O3", "-DNDEBUG", f"-arch=sm_{architecture}", "-cubin"]
        command += ["-Xptxas", "-v", f"-I{CSRC}", str(CSRC / "cuda" / source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        log.write_text(done.stderr)
    return tuple(disassemble(cubin)), log.read_text()


@cache
def resources(source: str, architecture: int) -> dict[str, tuple[int, int, int]]:
    """Return registers, spilled bytes and static shared bytes of each kernel, by mangled name."""
    found = {}
    for entry in re.finditer(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(.*?)\n",
        compiled(source, architecture)[1],
        re.DOTALL,
    ):
        shared = re.search(r"(\d+) bytes smem", entry[5])
        spilled = int(entry[2]) + int(entry[3])
        found[entry[1]] = (int(entry[4]), spilled, int(shared[1]) if shared else 0)
    return found


def _record(shape: Shape, device: Device) -> tuple[Any, bytes, list[torch.Tensor]]:
    """The launch that the policy makes for a shape on a device, and the kernel's parameters."""
    module = kernels()
    emulated = module.device()
    before = {
        name: getattr(emulated, name) for name in ("number", "multiprocessors", "cluster_limit")
    }
    emulated.number = 1 + DEVICES.index(device)
    emulated.multiprocessors, emulated.cluster_limit = device.multiprocessors, device.max_cluster
    torch.manual_seed(0)
    logits = torch.randn(shape.batch, shape.classes).to(shape.logits_dtype or shape.dtype)
    grad = torch.empty(shape.batch, shape.size, dtype=shape.dtype)
    grad[:4].normal_()
    if shape.scaled:
        grad = grad.view(shape.batch, 3, -1)
    target = torch.randint(shape.classes, (shape.batch,))
    scale = torch.rand(3) + 0.5 if shape.scaled else None
    made = [logits, grad, target]

    def allocate(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made.append(torch.empty(size, dtype=dtype))
        return made[-1]

    simt = Simt(allocate=allocate)
    q = {1.0: float("inf"), 2.0: 2.0, float("inf"): 1.0}[float(shape.p)]
    module.record_only(True)
    try:
        out = simt.average_margin_loss(
            logits,
            target,
            grad,
            None,
            None,
            scale,
            q,
            1e-6,
            1.0,
            0,
            -3.0,
            3.0,
            0.0,
            -100,
            1,
            True,
            True,
        )
        parameters = module.recorded_parameters()
    finally:
        module.record_only(False)
        for name, value in before.items():
            setattr(emulated, name, value)
    return simt.report, parameters, [*made, *out] + ([scale] if scale is not None else [])


def _type_name(dtype: torch.dtype) -> str:
    return {F32: "If", F16: r"INS0_7Float16E", BF16: r"INS0_8BFloat16E"}[dtype]


def _kernel(shape: Shape, variant: int, architecture: int) -> Kernel:
    pattern = rf"loss_kernel{_type_name(shape.dtype)}.*VariantE{variant}E.*RowUseE2E"
    found = [k for k in compiled("loss.cu", architecture)[0] if re.search(pattern, k.name)]
    assert len(found) == 1, (pattern, [k.name for k in found])
    return found[0]


def count(shape: Shape, device: Device) -> Count:
    """Count what a sample costs: a launch of three samples less one of two."""
    report, parameters, alive = _record(shape, device)
    kernel = _kernel(shape, report.variant, device.architecture)

    def traces(samples: int) -> list[Trace]:
        raw = bytearray(parameters)
        struct.pack_into("<q", raw, 0, samples)  # the batch, the first field of the arguments
        shared: dict[int, int] = {}
        warps = 1 if report.variant == 0 else report.threads // 32
        threads = 32 if report.variant == 0 else report.threads
        launch = [
            Launch(
                device.architecture,
                bytes(raw),
                threads,
                report.cluster_size,
                warp,
                report.cluster_size,
            )
            for warp in range(min(warps, 2))
        ]
        return [follow(kernel, each, shared) for each in launch]

    two, three = traces(2), traces(3)
    del alive
    per_warp = [b.total - a.total for a, b in zip(two, three, strict=True)]
    warps = 1 if report.variant == 0 else report.threads // 32
    first, other = per_warp[0], per_warp[-1]
    row = (first + (warps - 1) * other) * report.cluster_size
    registers, spilled, static = resources("loss.cu", device.architecture)[kernel.name]
    threads = report.threads
    per_register_file = 65536 // (-(-registers // 8) * 8 * threads)
    per_shared = device.shared_per_multiprocessor // (report.shared_bytes + static + 1024)
    resident = min(per_register_file, per_shared, device.threads_per_multiprocessor // threads, 32)
    resident = min(resident, -(-report.blocks // device.multiprocessors))
    loaded = (three[0].bytes_loaded - two[0].bytes_loaded) * 32
    warps_resident = resident * threads // 32
    copied = three[0].issued["LDGSTS"] > 0  # the whole row is requested at once
    at_a_time = loaded if copied else min(loaded, _batch_bytes(kernel))
    return Count(
        kernel.name,
        VARIANTS[report.variant],
        threads,
        report.cluster_size,
        report.blocks,
        report.shared_bytes,
        row,
        first,
        other,
        row / shape.bytes,
        registers,
        spilled,
        resident,
        warps_resident * at_a_time,
        three[0],
    )


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


def table(shapes: tuple[Shape, ...] = SHAPES, devices: tuple[Device, ...] = DEVICES) -> str:
    """Return the model's table as Markdown."""
    lines = [
        "| shape | GPU | variant | threads | cluster | instructions a byte | registers | spilled "
        "| blocks an SM | KB in flight | % of a clone (model) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        for device in devices:
            c = count(shape, device)
            lines.append(
                f"| {shape} | {device.name} | {c.variant} | {c.threads} | {c.cluster_size} "
                f"| {c.per_byte:.3f} | {c.registers} | {c.spilled} "
                f"| {c.resident} | {c.in_flight / 1024:.0f} | {100 * c.expected(device):.0f} |"
            )
    return "\n".join(lines)
