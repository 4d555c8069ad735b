"""Margins to all of 1000 classes of a ResNet-50: time, passes, and whether the answer is right.

    python -m benchmarks.all_classes [--samples 16] [--checked 2] [--threads 2] [--p 2]

The network has the shapes of He et al. (2016, table 1) and random weights, with running statistics
of BatchNorm from some batches, so that its activations keep their scale, and a head whose logits
are 0 on average; images are noise. Labels are the predicted classes, those of every fourth sample
the second largest logit, so that a quarter is misclassified. The last samples are measured class by
class too, one at a time, and compared. Each result is saved as it comes; none is computed twice:
--only names the part that is wanted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks import environment
from benchmarks.results import default_path
from margin_ext import measure
from margin_ext.bounds import AllClasses
from margin_ext.output.json_file import write_json

SIZE, CLASSES = 224, 1000
Data: TypeAlias = tuple[Tensor, Tensor]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, added to the input."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.branch = nn.Sequential(
            nn.Conv2d(given, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet50(classes: int = CLASSES) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    given = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(given, 64 * 2**stage, 2 if stage and not block else 1))
            given = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes))


def problem(samples: int, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = resnet50()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(8, 3, size, size))
        model.eval()
        # Otherwise all images would have the same nearest classes.
        features = model[:-1](torch.randn(8, 3, size, size)).mean(dim=0)
        model[-1].bias.copy_(-model[-1].weight @ features)
        inputs = torch.randn(samples, 3, size, size)
        largest = model(inputs).topk(2, dim=1).indices
    target = largest[:, 0].clone()
    target[::4] = largest[::4, 1]
    return model, inputs, target


class Record:
    """What was measured on one problem so far, in a file that several runs may add to."""

    def __init__(self, path: Path, problem: dict[str, Any]) -> None:
        self.path = path
        self.problem = problem

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        if content.get("problem", self.problem) != self.problem:
            raise SystemExit(f"{self.path} holds results of another problem: name another --out")
        return {"problem": self.problem, "sketch": None, "exhaustive": {}, **content}

    def write(self, content: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def timed(search: AllClasses, model: nn.Module, data: Data, p: str) -> dict[str, Any]:
    """Margins and what they took; on a busy machine only CPU seconds tell what it takes."""
    begun, used = time.perf_counter(), time.process_time()
    report = measure(model, data, p=p, classes=search, progress=True)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    print(report, flush=True)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "directions": int(report.directions.max()),
        "gradients": report.gradients.tolist(),
        "margin": report.margin.tolist(),
        "nearest_class": report.first.nearest_class.tolist(),
        "environment": environment.describe("cpu"),
    }


def compare(content: dict[str, Any]) -> str:
    """The answer of the sketch against the exhaustive one, in words."""
    sketch, checked = content["sketch"], content["exhaustive"]
    if not sketch or not checked:
        return "nothing to compare yet"
    other, worst, taken = 0, 0.0, []
    for number, one in checked.items():
        at = int(number)
        other += sketch["nearest_class"][at] != one["nearest_class"][0]
        right = one["margin"][0]
        worst = max(worst, abs(sketch["margin"][at] - right) / abs(right))
        taken.append(one["cpu_seconds"])
    return (
        f"{len(sketch['margin'])} samples in {sketch['seconds']:.0f} s, "
        f"{sketch['cpu_seconds']:.0f} CPU seconds on {sketch['environment']['torch_threads']} "
        f"threads; class by class {sum(taken) / len(taken):.0f} CPU seconds a sample: "
        f"other nearest class on {other} of {len(taken)}, margins differ by {worst:.1e} at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--checked", type=int, default=2, help="samples measured class by class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--p", default="2")
    parser.add_argument("--directions", type=int, default=AllClasses().directions)
    parser.add_argument("--derivatives", default="auto")
    parser.add_argument("--only", choices=("sketch", "exhaustive"), help="default: both")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, inputs, target = problem(given.samples, given.size)
    described = {"samples": given.samples, "size": given.size, "p": given.p}
    out = given.out or default_path("all_classes", "cpu", quick=given.size < SIZE)
    record = Record(out, described)
    if given.only != "exhaustive" and record.read()["sketch"] is None:
        search = AllClasses(
            search="sketch", directions=given.directions, derivatives=given.derivatives
        )
        found = timed(search, model, (inputs, target), given.p)
        record.write({**record.read(), "sketch": found})
    if given.only != "sketch":
        for at in range(given.samples - 1, given.samples - 1 - given.checked, -1):
            if str(at) in record.read()["exhaustive"]:
                continue
            one = slice(at, at + 1)
            found = timed(
                AllClasses(search="exhaustive"), model, (inputs[one], target[one]), given.p
            )
            content = record.read()
            content["exhaustive"][str(at)] = found
            record.write(content)
    print(compare(record.read()))


if __name__ == "__main__":
    main()
