"""What each gradient mode trains, and how far finite differences agree with double backward.

    python benchmarks/gradient_mode_training.py --mnist FOLDER [--threads 1]

Small networks on MNIST in equal epochs, three seeds; results go to
benchmarks/results/gradient_mode_training.json after every run, and runs found there are not
repeated. ``--table`` prints what the file holds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss, FiniteDifference
from margin_ext.data.idx_files import load_mnist
from margin_ext.measurement import measure, robust_accuracy

RESULTS = Path(__file__).parent / "results" / "gradient_mode_training.json"
SEEDS = (0, 1, 2)
TRAIN, TEST, EPOCHS, BATCH = 10_000, 500, 2, 128
MU, TAU, RATE, MOMENTUM = 1.0, 3.0, 0.05, 0.9
EPS = (1.0, 2.0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))


def cnn(activation: type[nn.Module], norm: type[nn.Module] | None = None) -> nn.Module:
    def block(given: int, made: int) -> list[nn.Module]:
        return [nn.Conv2d(given, made, 5, stride=2), *([norm(made)] if norm else []), activation()]

    head = [nn.Flatten(), nn.Linear(512, 64), activation(), nn.Linear(64, 10)]
    return nn.Sequential(*block(1, 16), *block(16, 32), *head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP ReLU": mlp,
    "CNN ReLU": lambda: cnn(nn.ReLU),
    "CNN GELU": lambda: cnn(nn.GELU),
    "CNN BatchNorm ReLU": lambda: cnn(nn.ReLU, nn.BatchNorm2d),
}


# The names that results are stored under, and the schemes' own.
SCHEMES: dict[str, Any] = {"toward": "backward", "away": "forward", "central": "central"}


def difference(side: str, step: float, batchnorm: str = "batch") -> dict[str, Any]:
    settings = FiniteDifference(SCHEMES[side], step, "absolute")
    return {"gradient": settings, "batchnorm": batchnorm}


# What the question turns on comes first: runs are long, and may be stopped.
VARIANTS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"mu": 0.0, "gradient": "detached"},
    "double_backward": {"gradient": "double_backward"},
    "toward 1.5": difference("toward", 1.5),
    "own margin": {
        "gradient": FiniteDifference("backward", 1.0, "margin"),
    },
    "detached": {"gradient": "detached"},
    "double_backward, running": {"gradient": "double_backward", "batchnorm": "running"},
    "toward 1.5, running": difference("toward", 1.5, "running"),
    "toward 0.5": difference("toward", 0.5),
    "away 1.5": difference("away", 1.5),
    "central 1.5": difference("central", 1.5),
}


def criterion(variant: str) -> AverageMarginLoss:
    return AverageMarginLoss(**{"p": 2, "mu": MU, "tau": TAU, **VARIANTS[variant]})


def variants_of(network: str) -> list[str]:
    """All on the first two networks; on the others those that the first two leave in question."""
    if network == "CNN GELU":
        return ["cross-entropy", "double_backward", "toward 1.5", "own margin"]
    if network == "CNN BatchNorm ReLU":
        running = [name for name in VARIANTS if "running" in name]
        return ["cross-entropy", "double_backward", "toward 1.5", "own margin", *running]
    return [name for name in VARIANTS if "running" not in name]


def train(network: str, variant: str, seed: int, data: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    loss = criterion(variant)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TRAIN, generator=order).split(BATCH):
            optimizer.zero_grad()
            loss.run(model, data[0][chosen], data[1][chosen]).loss.backward()
            optimizer.step()
    return model


def evaluate(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    part = (data[0][:TEST], data[1][:TEST])
    margins = measure(model, part, p=2, progress=False, batch_size=250).summary()
    attack = robust_accuracy(
        model,
        part,
        EPS,
        p=2,
        attacks=["gap"],
        data_range=(0.0, 1.0),
        diagnose_masking=False,
        progress=False,
        batch_size=500,
    )
    with torch.no_grad():
        right = model.eval()(data[0]).argmax(1) == data[1]
    found = {"accuracy": float(right.float().mean()), "average_margin": float(margins.average)}
    for eps, share in zip(EPS, attack.curve("gap"), strict=True):
        found[f"robust_{eps:g}"] = share
    return found


def agreement(network: str, model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Finite differences against double backward in float64: the norm's part of the gradient."""
    x, y = data[0][:BATCH], data[1][:BATCH]

    def gradient(settings: dict[str, Any], dtype: torch.dtype) -> Tensor:
        twin = copy.deepcopy(model).to(dtype).train()
        AverageMarginLoss(p=2, mu=MU, tau=TAU, **settings).run(twin, x.to(dtype), y).loss.backward()
        return torch.cat([p.grad.flatten().double() for p in twin.parameters()])

    detached = gradient({"gradient": "detached"}, torch.float64)
    exact = gradient({"gradient": "double_backward"}, torch.float64)
    wanted = exact - detached
    found: dict[str, Any] = {"norm_part_share": float(wanted.norm() / exact.norm())}
    for side in ("toward", "away", "central"):
        for step in (0.015, 0.05, 0.15, 0.5, 1.5):
            got = gradient(difference(side, step), torch.float32)
            part = got - detached
            found[f"{side} {step:g}"] = {
                "relative_error": float((part - wanted).norm() / wanted.norm()),
                "cosine": float(torch.cosine_similarity(part, wanted, dim=0)),
                "cosine_whole_gradient": float(torch.cosine_similarity(got, exact, dim=0)),
            }
    return found


def read_results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault("runs", {})
    found.setdefault("agreement", {})
    return found


def run_all(folder: Path, threads: int, seeds: list[int]) -> None:
    torch.set_num_threads(threads)
    images, labels = load_mnist(folder, train=True)
    train_data, test_data = (images[:TRAIN], labels[:TRAIN]), load_mnist(folder)
    setting = {
        "train_images": TRAIN,
        "test_images_attacked": TEST,
        "epochs": EPOCHS,
        "batch": BATCH,
        "mu": MU,
        "tau": TAU,
        "rate": RATE,
        "momentum": MOMENTUM,
        "attack": "l2 PGD on the gap, 40 steps, [0, 1]",
        "torch": torch.__version__,
        "threads": threads,
    }
    for seed, variant, network in itertools.product(seeds, VARIANTS, NETWORKS):
        key = f"{network} | {variant} | {seed}"
        if variant not in variants_of(network):
            continue
        results = read_results()
        judged = variant == "cross-entropy" and seed == 0
        if key in results["runs"] and (network in results["agreement"] or not judged):
            continue
        start = time.process_time()
        model = train(network, variant, seed, train_data)
        seconds = time.process_time() - start
        run = {**evaluate(model, test_data), "train_cpu_seconds": seconds}
        agreed = agreement(network, model, test_data) if judged else None
        # Read again: other seeds may run beside this one.
        results = {"setting": setting, **read_results()}
        results["runs"][key] = run
        if agreed is not None:
            results["agreement"][network] = agreed
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(key, run, flush=True)


def print_table() -> None:
    """Mean (and half the range) over the seeds."""
    results = json.loads(RESULTS.read_text())
    columns = ["accuracy", "average_margin", *(f"robust_{eps:g}" for eps in EPS)]
    for network in NETWORKS:
        print(f"\n**{network}**\n")
        print("| training | accuracy | average margin | robust at 1 | robust at 2 | CPU s |")
        print("|---|---|---|---|---|---|")
        for variant in variants_of(network):
            keys = [f"{network} | {variant} | {seed}" for seed in SEEDS]
            rows = [results["runs"][key] for key in keys if key in results["runs"]]
            if not rows:
                continue
            cells = []
            for column in columns:
                values = [row[column] for row in rows]
                half = (max(values) - min(values)) / 2
                cells.append(f"{statistics.fmean(values):.3f} ± {half:.3f}")
            seconds = statistics.fmean(row["train_cpu_seconds"] for row in rows)
            print(f"| {variant} | {' | '.join(cells)} | {seconds:.0f} |")
    for network, rows in results["agreement"].items():
        print(f"\n**{network}**: norm part is {rows['norm_part_share']:.2f} of the gradient\n")
        print("| difference | relative error | cosine | cosine of the whole gradient |")
        print("|---|---|---|---|")
        for name, row in rows.items():
            if name != "norm_part_share":
                values = (row["relative_error"], row["cosine"], row["cosine_whole_gradient"])
                print(f"| {name} | {values[0]:.2g} | {values[1]:.4f} | {values[2]:.4f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder with the idx files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
    else:
        run_all(arguments.mnist, arguments.threads, arguments.seeds)
