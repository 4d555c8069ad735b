"""How near certified bounds come to exact distances, and what they cost.

    python -m benchmarks.certified --out benchmarks/results/certified.json

Three ways: the usual lines of CROWN (``slopes=0``, what earlier versions had), lines that are
chosen by gradient ascent (the default), and branch and bound.

- Tightness: random ReLU networks with 2 inputs and layers of 16, whose exact distances a scan of
  all directions finds; mean of certified over exact.
- Trained: an MLP 64-32-10 on the 8 x 8 digits, against the distance of the nearest adversarial
  example that a thorough search finds.
- Time: networks with 784 inputs and random weights, CPU seconds an image with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.bounds import Certified, MinimumDistance
from margin_ext.threat import ThreatModel

NORMS = (1.0, 2.0, math.inf)
NAMES = ("crown", "slopes", "branches")


def mlp(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """Random weights of a scale that keeps the activations alive."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for given, units in itertools.pairwise(sizes):
        layer = nn.Linear(given, units).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(units, given) / given**0.5)
            layer.bias.copy_(0.5 * torch.randn(units))
        layers += [nn.ReLU(), layer] if layers else [layer]
    return nn.Sequential(*layers)


def scanned_distance(model: nn.Module, x: Tensor, label: int, p: float) -> float:
    """Distance from x [2] to another class, along rays: finer and finer around the nearest."""
    far, width = 8.0, 2 * math.pi / 360
    angles = torch.arange(360, dtype=torch.float64) * width
    for steps in (200, 100, 100, 50):
        reached = _along_rays(model, x, label, p, angles, torch.zeros_like(angles), far, steps)[0]
        if not math.isfinite(nearest := float(reached.min())):
            return nearest
        far = 1.05 * nearest
        best = angles[reached.argsort()[:12]]
        angles = (best[:, None] + torch.linspace(-1, 1, 41, dtype=torch.float64) * width).flatten()
        width /= 20
    low = torch.zeros_like(angles)
    high: float | Tensor = far
    for steps in (200, 50, 50):
        reached, before = _along_rays(model, x, label, p, angles, low, high, steps)
        hit = torch.isfinite(reached)
        angles, low, high = angles[hit], before[hit], reached[hit]
    assert isinstance(high, Tensor)
    return float(high.min())


def _along_rays(
    model: nn.Module, x: Tensor, label: int, p: float, angles: Tensor, low: Tensor,
    high: float | Tensor, steps: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first point of another class on every ray, and the last one before it."""
    direction = torch.stack([angles.cos(), angles.sin()], dim=1)
    direction /= torch.linalg.vector_norm(direction, p, dim=1, keepdim=True)
    part = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    at = low[:, None] + (high - low)[:, None] * part
    with torch.no_grad():
        logits = model((x + at[..., None] * direction[:, None]).reshape(-1, 2))
    others = logits.index_fill(1, torch.tensor([label]), -math.inf).amax(dim=1)
    wrong = (logits[:, label] <= others).reshape(at.shape)
    first = wrong.int().argmax(dim=1, keepdim=True)
    reached = torch.where(wrong.any(dim=1), at.gather(1, first)[:, 0], math.inf)
    return reached, at.gather(1, (first - 1).clamp_min(0))[:, 0]


def ways(branches: int) -> dict[str, Certified]:
    bounds = (Certified(slopes=0), Certified(), Certified(branches=branches, progress=False))
    return dict(zip(NAMES, bounds, strict=True))


def compared(
    model: nn.Module, x: Tensor, label: Tensor, distance: Tensor, p: float, branches: int
) -> dict[str, Any]:
    """Certified over the distance, and CPU seconds a sample, of every way."""
    found: dict[str, Any] = {}
    reached = torch.isfinite(distance) & (distance > 0)
    for name, bound in ways(branches).items():
        begun = time.process_time()
        certified = bound(model, x, label, threat=ThreatModel(p=p)).distance
        seconds = (time.process_time() - begun) / len(x)
        assert (certified <= distance * (1 + 1e-6)).all(), "a bound above the distance"
        found[name] = {"ratios": (certified / distance)[reached].tolist(), "seconds": seconds}
    return found


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        ratios = [ratio for part in parts for ratio in part[name]["ratios"]]
        found[name] = {
            "mean_ratio": round(statistics.mean(ratios), 4),
            "smallest_ratio": round(min(ratios), 4),
            "seconds": round(statistics.mean(part[name]["seconds"] for part in parts), 4),
        }
    return found


def tightness(depth: int, p: float, seeds: int, points: int, branches: int) -> dict[str, Any]:
    parts = []
    for seed in range(seeds):
        model = mlp((2, *[16] * depth, 3), seed)
        x = torch.randn(points, 2, dtype=torch.float64)
        label = model(x).argmax(dim=1).detach()
        exact = [scanned_distance(model, a, int(b), p) for a, b in zip(x, label, strict=True)]
        distance = torch.tensor(exact, dtype=torch.float64)
        parts.append(compared(model, x, label, distance, p, branches))
    return joined(parts)


def trained(p: float, points: int, branches: int) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float() / 16, torch.tensor(target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:1297]), y[:1297]).backward()
        optimizer.step()
    right = model(x[1297:]).argmax(dim=1) == y[1297:]
    x, y = x[1297:][right][:points], y[1297:][right][:points]
    search = MinimumDistance.thorough()
    distance = search(model, x, y, threat=ThreatModel(p=p)).distance
    return joined([compared(model, x, y, distance, p, branches)])


def cost(sizes: tuple[int, ...], p: float, images: int) -> dict[str, float]:
    model = mlp(sizes, 0).float()
    x = torch.rand(images, sizes[0])
    label = model(x).argmax(dim=1)
    seconds = {}
    for name in NAMES[:2]:
        bound = ways(1)[name]
        bound(model, x[:1], label[:1], threat=ThreatModel(p=p))
        begun = time.process_time()
        bound(model, x, label, threat=ThreatModel(p=p))
        seconds[name] = round((time.process_time() - begun) / images, 4)
    return seconds


def measured(p: float, given: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured for a norm, by its key in the results."""
    norm = ThreatModel(p=p).name
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for sizes in ((784, 256, 10), (784, 256, 256, 10)):
        name = "-".join(map(str, sizes))
        found[f"seconds {name} {norm}"] = partial(cost, sizes, p, images=5)
    found[f"digits 64-32-10 {norm}"] = partial(trained, p, 2 * given.points, given.branches)
    for depth in (1, 2, 3):
        found[f"hidden layers {depth} {norm}"] = partial(
            tightness, depth, p, given.seeds, given.points, given.branches
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--branches", type=int, default=1000)
    parser.add_argument("--p", type=float, nargs="+", choices=NORMS, default=NORMS)
    parser.add_argument("--out", type=Path, help="kept as it comes; what is there is not repeated")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"torch": torch.__version__, "seeds": given.seeds, "points": given.points}
    result: dict[str, Any] = {**settings, "branches": given.branches}
    if given.out and given.out.exists():
        result = {**json.loads(given.out.read_text()), **result}
    for p in given.p:
        for key, measure in measured(p, given).items():
            if key not in result:
                result[key] = measure()
                print(key, result[key], flush=True)
                if given.out:
                    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
