"""Render results into docs/benchmarks.md and its figures.

    python -m benchmarks.report [--results FOLDER] [--docs FOLDER]

Of each machine the newest file of each part is shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environment, figures, goals, results, tables
from benchmarks.jobs import LOGITS_JOB, PART_JOBS, TRAINING_JOB
from benchmarks.peer_tables import peers

_NO_GPU = "not measured: no GPU was at hand"
_BUSY = 0.25  # cores that other programs took; from here on figures are worth less

_HEAD = """\
# Benchmarks

<!-- Written by `python -m benchmarks.report` from benchmarks/results: change those, not this. -->

`make bench` measures everything on the machine at hand and renders this page. All contenders of a
case take turns in one process, results are compared with the reference before any clock is started,
data are random, and figures are medians (quartiles are in the JSON files). "Copy" and "clone" are
`copy_` and `torch.clone` of a tensor that move as many bytes as the op must read and write, and
"negation", on a GPU, is torch's elementwise `-x` of it: the practical limit of the memory. "Eager"
and "torch.compile" run `margin_ext.reference`, the latter compiled for each shape by itself; their
columns tell how many times as long as the fused kernels they take. Peak memory is what a call held
at most beyond its inputs, its results included.
"""

_HOW_CPU = """\
On the CPU all contenders use the same inputs: what fits the caches stays there, as in training,
where the gradient has just been computed. The process keeps the memory that is freed, as with
tcmalloc or jemalloc, or glibc with `MALLOC_MMAP_MAX_=0` and `MALLOC_TRIM_THRESHOLD_=4000000000`;
the copy goes into memory that was used before. The last two columns are of the other extreme: all
results lie in pages that come fresh from the system, those of the clone too. What glibc does by
itself lies between, and depends on what was allocated before.
"""

_HOW_CUDA = """\
On the GPU the calls rotate over buffers that together take three times the L2, captured into one
CUDA graph: times are the device's own. Where a contender synchronises it cannot be captured, and
its ratio is between events around calls issued one by one ("host too"). "Host time" is what issuing
a call takes.
"""

_HOW_STEP = """\
A whole step: forward, loss, backward, SGD with momentum; relative to plain cross-entropy in the
same run. "Reference" is the same loss without the compiled library. The kernels' share is the part
of the step that is spent in this package's own ops: what is beyond it, no kernel of ours can speed
up. With F for a forward pass, the plain step takes 3 F, one-step adversarial training 5 F, the
exact modes about 6 F and one finite difference 7 F. The additive margin by the difference of two
passes would take 5 F: it is one-step adversarial training, and has its row.
"""


@dataclass
class Machine:
    """The newest results of one machine, by part."""

    device: str
    environment: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    bounds: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        if self.device == "cuda":
            return str(self.environment["gpu"]["name"])
        return f"{self.environment['processor']}, {self.environment['cores']} cores"


def machines(folder: Path) -> list[Machine]:
    """Everything to show, CPUs first."""
    found: dict[str, Machine] = {}
    for path, content in results.load_folder(folder):
        kind = path.name.split("_", 1)[0]
        machine = found.setdefault(kind, Machine(content["device"], content["environment"]))
        shown = machine.files.get(content["part"])
        if shown is None or shown["started"] <= content["started"]:
            machine.files[content["part"]] = content
            machine.environment = content["environment"]
    for path in sorted(folder.glob("*_bounds.json")):
        kind = path.name.split("_", 1)[0]
        if kind in found:
            found[kind].bounds = json.loads(path.read_text())
    return sorted(found.values(), key=lambda machine: (machine.device, machine.title))


def render(results_folder: Path, docs: Path) -> Path:
    """Write the page and its figures; returns the page."""
    shown = machines(results_folder)
    parts = [_HEAD]
    if any(content["quick"] for machine in shown for content in machine.files.values()):
        parts.append("**From a smoke test on tiny sizes: these figures mean nothing.**")
    for machine in shown:
        parts += _goals(machine)
    if not any(machine.device == "cuda" for machine in shown):
        parts += ["## Goals: GPU", _NO_GPU]
    for machine in shown:
        parts += _sections(machine, docs)
    if not any(machine.device == "cuda" for machine in shown):
        parts += ["## GPU", _NO_GPU]
    page = docs / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    return page


def _goals(machine: Machine) -> Iterator[str]:
    find = goals.cpu_verdicts if machine.device == "cpu" else goals.cuda_verdicts
    yield f"## Goals: {machine.title}"
    yield tables.goals(find(machine.files))


def _sections(machine: Machine, docs: Path) -> Iterator[str]:
    yield f"## {machine.title}"
    yield _hardware(machine)
    yield from _beside(machine)
    slug = "cpu" if machine.device == "cpu" else "gpu"
    slug += "-" + environment.slug(machine.title)
    if "kernels" in machine.files:
        yield from _kernels(machine, docs / "images" / f"benchmark-kernels-{slug}.png")
    if "training_step" in machine.files:
        yield "### Training step"
        yield _HOW_STEP
        for case in machine.files["training_step"]["cases"]:
            yield (
                f"**{case['name']}**, batch {case['batch']}, "
                f"{case['parameters'] / 1e6:.2f} million parameters ({case['reason']}):"
            )
            yield tables.training_step(case)
        yield _largest_share(machine.files["training_step"]["cases"])
    if "scaling" in machine.files:
        path = docs / "images" / f"benchmark-scaling-{slug}.png"
        figures.scaling(machine.files["scaling"]["cases"], path)
        yield "### How the cost grows"
        yield (
            "The loss, forward and backward, float32, p = 2; what does not grow is 128 x 3072 with "
            "10 classes (for threads, 2048 x 3072)."
        )
        yield f"![Time against B, D, C and threads](images/{path.name})"
    if "call_overhead" in machine.files:
        yield "### Call overhead"
        for case in machine.files["call_overhead"]["cases"]:
            yield f"**{case['shape']}**, one thread, Python included ({case['reason']}):"
            yield tables.call_overhead(case)
    if "peers" in machine.files:
        yield "### Other libraries"
        yield from peers(machine.files["peers"])
    if machine.bounds:
        yield "### Bounds"
        yield "The sampled estimate, batched, against the authors' loop over the same points:"
        yield tables.bounds(machine.bounds)


def _largest_share(cases: list[dict[str, Any]]) -> str:
    """In words, which part of a step is ours at most."""
    shares = [
        (share, name, case["name"])
        for case in cases
        for name, share in case["kernel_share"].items()
    ]
    if not shares:
        return ""
    share, mode, where = max(shares)
    return (
        f"The kernels take at most {100 * share:.1f} % of a step (`{mode}` on {where}); the rest "
        "is the network's own work."
    )


def _kernels(machine: Machine, figure: Path) -> Iterator[str]:
    cases = machine.files["kernels"]["cases"]
    yield "### Kernels"
    yield _HOW_CPU if machine.device == "cpu" else _HOW_CUDA
    for job in (TRAINING_JOB, *PART_JOBS, LOGITS_JOB):
        chosen = [case for case in cases if case["job"] == job.name]
        if not chosen:
            continue
        yield f"**{job.name}** ({chosen[0]['yardstick']}: {job.limit})"
        yield tables.kernels(chosen, machine.device)
        if job is TRAINING_JOB:
            figures.times_of_yardstick(chosen, figure)
            yield f"![Times of a copy of the same bytes](images/{figure.name})"
    failures = {
        contender["failure"]
        for case in cases
        for contender in case["contenders"].values()
        if contender.get("failure")
    }
    for failure in sorted(failures):
        yield f"Where torch.compile has no figure, it failed: `{failure}`"


def _hardware(machine: Machine) -> str:
    told = machine.environment
    lines = [
        f"- {told['processor']}, {told['cores']} cores, "
        + ", ".join(f"{level} {size}" for level, size in told["caches"].items())
        + f", {tables.volume(told['memory_bytes'])} of memory, {told['system']}",
        f"- Python {told['python']}, {told['cpu_instruction_set']} kernels compiled by "
        f"{told['compiler']}",
    ]
    gpu = told["gpu"]
    if gpu:
        lines.insert(
            0,
            f"- {gpu['name']}, compute capability {gpu['capability']}, "
            f"{gpu['multiprocessors']} multiprocessors, {tables.volume(gpu['memory_bytes'])}, "
            f"L2 {tables.volume(gpu['l2_bytes'])}, driver {gpu['driver']}, CUDA {gpu['cuda']}, "
            f"nvcc {told['nvcc']}",
        )
    for part, content in machine.files.items():
        where = content["environment"]
        commit = (where["commit"] or "unknown")[:12]
        changed = " with uncommitted changes" if where["uncommitted_changes"] else ""
        state = "" if content["finished"] else ", interrupted: not complete"
        others = sorted({case["commit"][:12] for case in content["cases"] if "commit" in case})
        state += f", some cases at {', '.join(others)}" if others else ""
        threads = where["torch_threads"]
        lines.append(
            f"- {part}: {content['started'][:10]}, margin_ext {where['margin_ext']}, commit "
            f"{commit}{changed}, torch {where['torch']}, {threads} "
            f"thread{'s' * (threads != 1)}{state}"
        )
    return "\n".join(lines)


def _beside(machine: Machine) -> Iterator[str]:
    """A warning where other programs were busy while something was timed."""
    loads = [
        case["others_cores"] or 0.0
        for content in machine.files.values()
        for case in content["cases"]
    ]
    busy = sum(load > _BUSY for load in loads)
    if busy:
        yield (
            f"**Other programs were busy during {busy} of {len(loads)} cases (up to "
            f"{max(loads):.1f} cores): these figures are unreliable.**"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    parser.add_argument("--docs", type=Path, default=environment.ROOT / "docs")
    given = parser.parse_args(argv)
    print(f"wrote {render(given.results, given.docs)}")


if __name__ == "__main__":
    main()
