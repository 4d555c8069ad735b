"""Time and peak memory of a training step in each gradient mode, against the cross-entropy alone.

    python benchmarks/gradient_modes.py [--rounds 7] [--threads 1]

Variants take turns within every round, so that what else the machine does hits all alike; figures
are medians over the rounds. Results go to benchmarks/results/gradient_modes.json; ``--table``
prints what the file holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from margin_ext import AverageMarginLoss, FiniteDifference

RESULTS = Path(__file__).parent / "results" / "gradient_modes.json"
# Steps with margins are rare under every=4: a round takes as many steps as make one cycle.
CYCLE = {"finite_difference, every=4": 4, "double_backward, every=4": 4}
CENTRAL = FiniteDifference("central", 0.5, "tau")

VARIANTS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "detached": {"gradient": "detached"},
    "double_backward": {"gradient": "double_backward"},
    "finite_difference": {"gradient": "finite_difference"},
    "finite_difference, central": {"gradient": CENTRAL},
    "secant, 2 attack steps": {"margin": "secant"},
    "finite_difference, fraction=1/4": {"gradient": "finite_difference", "fraction": 0.25},
    "double_backward, fraction=1/4": {"gradient": "double_backward", "fraction": 0.25},
    "finite_difference, every=4": {"gradient": "finite_difference", "every": 4},
    "double_backward, every=4": {"gradient": "double_backward", "every": 4},
}


class Residual(nn.Module):
    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(given, made, 3, stride, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
            nn.Conv2d(made, made, 3, 1, 1, bias=False),
            nn.BatchNorm2d(made),
        )
        same = given == made and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(given, made, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.skip(x))


def resnet14() -> nn.Module:
    blocks = [Residual(16, 16, 1), Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1)]
    blocks += [Residual(32, 64, 2), Residual(64, 64, 1)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1),
        nn.GELU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4096, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-14 BatchNorm": resnet14,
    "CNN GELU": cnn,
    "MLP ReLU": mlp,
}


def stepper(variant: str, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step without the optimizer's part, which is the same for all."""
    plain = nn.CrossEntropyLoss()
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, **VARIANTS[variant])

    def step() -> None:
        model.zero_grad()
        if variant == "cross-entropy":
            plain(model(x), y).backward()
        else:
            criterion.run(model, x, y).loss.backward()

    return step


def peak_bytes(step: Callable[[], None], model: nn.Module) -> int:
    """The most that the allocator held at once during a step, beyond parameters and inputs."""
    model.zero_grad()  # or their release would count as room made in the step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(network: str, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    model = NETWORKS[network]()
    x, y = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    steps = {variant: stepper(variant, model, x, y) for variant in VARIANTS}
    for step in steps.values():
        step()  # gradients and buffers exist from here on
    # The cycle of every=4 begins anew with a step that takes margins.
    memory = {}
    for variant, step in steps.items():
        cycle = CYCLE.get(variant, 1)
        memory[variant] = max(peak_bytes(step, model) for _ in range(cycle))
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, step in steps.items():
            cycle = CYCLE.get(variant, 1)
            start = time.process_time()
            for _ in range(cycle):
                step()
            seconds[variant].append((time.process_time() - start) / cycle)
    found = {}
    for variant in VARIANTS:
        ratios = [
            own / plain
            for own, plain in zip(seconds[variant], seconds["cross-entropy"], strict=True)
        ]
        found[variant] = {
            "cpu_milliseconds": 1000 * statistics.median(seconds[variant]),
            "time_ratio": statistics.median(ratios),
            "peak_mebibytes": memory[variant] / 2**20,
            "memory_ratio": memory[variant] / memory["cross-entropy"],
        }
    return found


def run(rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    results: dict[str, Any] = {
        "setting": {"torch": torch.__version__, "threads": threads, "rounds": rounds},
        "networks": {},
    }
    for network in NETWORKS:
        for batch in (16, 64):
            results["networks"][f"{network}, batch {batch}"] = measure(network, batch, rounds)
            print(network, batch, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def print_table() -> None:
    networks = json.loads(RESULTS.read_text())["networks"]
    print("| mode | " + " | ".join(networks) + " |")
    print("|---|" + "---|" * len(networks))
    for variant in VARIANTS:
        cells = [
            f"{rows[variant]['cpu_milliseconds']:.0f} ms, {rows[variant]['peak_mebibytes']:.0f} MiB"
            if variant == "cross-entropy"
            else f"{rows[variant]['time_ratio']:.2f} / {rows[variant]['memory_ratio']:.2f}"
            for rows in networks.values()
        ]
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
    else:
        run(arguments.rounds, arguments.threads)
