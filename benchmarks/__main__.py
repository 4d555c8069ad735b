"""Run the suite and render docs/benchmarks.md.

    python -m benchmarks [--quick] [--no-compile] [--fresh] [--parts kernels scaling ...]

Every part runs in a process of its own on the CPU and, where there is one, on the GPU. Results are
saved as they come: after an interruption the same command goes on where it stopped (the bounds, one
minute, start again). A part that fails is told at the end, and the others' results are rendered.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import environment, report
from benchmarks.results import FOLDER, QUICK_FOLDER, default_path

PARTS = ("call_overhead", "kernels", "training_step", "scaling", "bounds", "peers")


def command(part: str, device: str, out: Path, given: argparse.Namespace) -> list[str]:
    """How one part is run."""
    line = [sys.executable, "-m", f"benchmarks.{part}", "--device", device, "--out", str(out)]
    if part == "bounds":
        return [*line, "--points", "16", "--repeats", "1"] if given.quick else line
    if given.quick:
        line.append("--quick")
    if given.fresh:
        line.append("--fresh")
    if part in ("kernels", "training_step") and given.no_compile:
        line.append("--no-compile")
    if part == "peers" and given.mnist:
        line += ["--mnist", str(given.mnist)]
    if given.threads and part != "call_overhead":
        line += ["--threads", str(given.threads)]
    return line


def planned(given: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """Part, device and file of everything that is to run."""
    for device in given.devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]):
        for part in given.parts:
            if (Path(__file__).parent / f"{part}.py").is_file():
                name = default_path(part, device, given.quick).name
                yield part, device, given.results / name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test, no figures")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's idx files, for the peers")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    parser.add_argument("--docs", type=Path, help="folder of benchmarks.md")
    given = parser.parse_args(argv)
    given.results = given.results or (QUICK_FOLDER if given.quick else FOLDER)
    docs = given.docs or (QUICK_FOLDER if given.quick else environment.ROOT / "docs")
    given.results.mkdir(parents=True, exist_ok=True)
    failed = []
    for part, device, out in planned(given):
        begun = time.perf_counter()
        print(f"== {part} on {device}", flush=True)
        line = command(part, device, out, given)
        finished = subprocess.run(line, check=False, cwd=environment.ROOT)
        if finished.returncode:
            failed.append(f"{part} on {device}")
        print(f"   {time.perf_counter() - begun:.0f} s", flush=True)
    page = report.render(given.results, docs)
    print(page.read_text())
    for name in failed:
        print(f"FAILED: {name}; its message is above", file=sys.stderr)
    print(f"rendered {page}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
