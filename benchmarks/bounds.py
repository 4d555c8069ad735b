"""Time of the sampled margin estimate against what it needs and against the authors' loop.

    python benchmarks/bounds.py --threads 1 --points 256 --out benchmarks/results/bounds.json

Ways over the same number of points, alternating in one process:

- the loop as the authors' script does it: for every competitor a new set of points, one forward
  pass and one backward pass that also computes the parameters' gradients;
- the same loop with frozen parameters;
- ours: one set of points for all competitors;
- the bare passes that ours needs: one forward pass, one backward pass a competitor, nothing else.

On the CPU the time is that of the process's CPU seconds, so that other work on the machine does
not count; with one thread it is the wall-clock time of an idle core.

The network is the authors' MNIST CNN; weights and inputs do not matter for the time, so they are
random.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from margin_ext.bounds import Sampled
from margin_ext.models.authors_models import AUTHORS_MODELS
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.threat import ThreatModel

RADIUS = 5.0


def authors_loop(model: nn.Module, sample: Tensor, points: int) -> float:
    """One sample's estimate as in the authors' script, in our words (p = 2)."""
    with torch.no_grad():
        logits = model(sample)[0]
    predicted = int(logits.argmax())
    answer = RADIUS
    for other in range(logits.shape[0]):
        if other == predicted:
            continue
        model.zero_grad()
        direction = torch.randn(points, sample.numel())
        direction /= direction.norm(dim=1, keepdim=True)
        distance = torch.rand(points, 1) ** (1 / sample.numel())
        x = sample + (RADIUS * distance * direction).reshape(points, *sample.shape[1:])
        x.requires_grad_()
        z = model(x)
        (z[:, predicted] - z[:, other]).sum().backward()
        assert x.grad is not None
        steepest = x.grad.reshape(points, -1).norm(dim=1).max().item()
        answer = min(answer, (logits[predicted] - logits[other]).item() / steepest)
    return answer


def bare_passes(model: nn.Module, x: Tensor, backward: int, chunk: int) -> None:
    """The passes alone, in the same chunks as ours."""
    for part in x.split(chunk):
        inputs = part.detach().requires_grad_()
        z = model(inputs)
        for other in range(1, backward + 1):
            upstream = torch.zeros_like(z)
            upstream[:, 0], upstream[:, other] = 1.0, -1.0
            torch.autograd.grad(z, inputs, upstream, retain_graph=other < backward)


def ways(
    model: nn.Module, sample: Tensor, points: int, chunk: int
) -> dict[str, Callable[[], object]]:
    around = sample + torch.randn(points, *sample.shape[1:])
    label = model(sample).argmax(dim=1)

    def frozen(run: Callable[[], object]) -> Callable[[], object]:
        def with_mode() -> object:
            with evaluation_mode(model):
                return run()

        return with_mode

    def ours(nearest: int | None) -> Callable[[], object]:
        sampled = Sampled(points=points, radius=RADIUS, nearest=nearest, chunk=chunk)
        return frozen(lambda: sampled(model, sample, label, threat=ThreatModel(p=2)))

    return {
        "authors_loop": lambda: authors_loop(model, sample, points),
        "authors_loop_frozen": frozen(lambda: authors_loop(model, sample, points)),
        "ours": ours(None),
        "ours_nearest_3": ours(3),
        "bare_passes": frozen(lambda: bare_passes(model, around, 9, chunk)),
        "bare_passes_3": frozen(lambda: bare_passes(model, around, 3, chunk)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(AUTHORS_MODELS), default="mnist_cnn")
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_default_device(arguments.device)
    torch.manual_seed(0)
    model = AUTHORS_MODELS[arguments.model]().eval()
    sample = torch.rand(1, 3, 32, 32) if "cifar" in arguments.model else torch.rand(1, 1, 28, 28)
    runs = ways(model, sample, arguments.points, arguments.chunk)
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                times[name].append(clock() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        "ours_over_bare_passes": median["ours"] / median["bare_passes"],
        "ours_nearest_3_over_bare_passes": median["ours_nearest_3"] / median["bare_passes_3"],
        "speedup_over_loop": median["authors_loop"] / median["ours"],
        "speedup_over_loop_nearest_3": median["authors_loop"] / median["ours_nearest_3"],
        "speedup_over_frozen_loop": median["authors_loop_frozen"] / median["ours"],
        "speedup_over_frozen_loop_nearest_3": median["authors_loop_frozen"]
        / median["ours_nearest_3"],
    }
    result = {
        "model": arguments.model,
        "points": arguments.points,
        "chunk": arguments.chunk,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else _processor(),
        "torch": torch.__version__,
        "clock": clock.__name__,
        "median_seconds_a_sample": median,
        "best_seconds_a_sample": {name: min(values) for name, values in times.items()},
        "ratios_of_medians": ratios,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
