"""Margins to all of 1000 classes of a ResNet-50: time, passes, and whether the answer is right.

    python -m benchmarks.all_classes [--samples 16] [--checked 1] [--threads 2] [--p 2]

The network has the shapes of He et al. (2016, table 1) and random weights, with running statistics
of BatchNorm from some batches, so that its activations keep their scale, and a head whose logits
are 0 on average; images are noise. Labels are the predicted classes, those of every fourth sample
the second largest logit, so that a quarter is misclassified. The last samples are measured class by
class too, and compared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import environment
from benchmarks.results import default_path
from margin_ext import measure
from margin_ext.bounds import AllClasses

SIZE, CLASSES = 224, 1000


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


def timed(**arguments: Any) -> tuple[Any, float, float]:
    """The report, seconds, and CPU seconds: on a busy machine only these tell what it takes."""
    begun, used = time.perf_counter(), time.process_time()
    report = measure(arguments.pop("model"), arguments.pop("data"), progress=True, **arguments)
    return report, time.perf_counter() - begun, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--checked", type=int, default=1, help="samples measured class by class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--p", default="2")
    parser.add_argument("--directions", type=int, default=AllClasses().directions)
    parser.add_argument("--derivatives", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, inputs, target = problem(given.samples, given.size)
    sketch = AllClasses(search="sketch", directions=given.directions, derivatives=given.derivatives)
    report, seconds, cpu = timed(model=model, data=(inputs, target), p=given.p, classes=sketch)
    print(report)
    result: dict[str, Any] = {
        "environment": environment.describe("cpu"),
        "samples": given.samples,
        "threads": given.threads,
        "p": given.p,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "directions": int(report.directions.max()),
        "gradients": report.gradients.tolist(),
    }
    print(f"{given.samples} samples in {seconds:.1f} s, {cpu:.1f} CPU seconds", flush=True)
    if given.checked:
        last = slice(given.samples - given.checked, given.samples)
        every, _, taken = timed(
            model=model,
            data=(inputs[last], target[last]),
            p=given.p,
            classes=AllClasses(search="exhaustive"),
        )
        same = report.first.nearest_class[last] == every.first.nearest_class
        off = np.abs(report.margin[last] - every.margin) / np.abs(every.margin)
        result.update(
            checked=given.checked,
            exhaustive_cpu_seconds_a_sample=taken / given.checked,
            other_nearest_class=int((~same).sum()),
            largest_relative_difference=float(off.max()),
        )
        print(
            f"class by class: {taken / given.checked:.1f} CPU s a sample, other nearest class on "
            f"{int((~same).sum())} of {given.checked}, margins differ by {off.max():.1e}"
        )
    out = given.out or default_path("all_classes", "cpu", quick=given.size < SIZE)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
