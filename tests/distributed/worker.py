"""Run by torchrun in two processes: every scenario against a single process on the joined batch.

Writes {scenario: number or text} as JSON to the path in its argument, from rank 0.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from margin_ext import AdversarialTraining, Auto, AverageMarginLoss, Distance, FiniteDifference
from margin_ext.distributed import reduce_statistics
from margin_ext.threat import ThreatModel

MODES = (
    "double_backward",
    "finite_difference",
    "detached",
    "auto",
    "secant",
    "distance",
    "envelope",
    "additive",
)
# Objectives without a normalizer, which several batches of one step would need.
PEERS = ("adversarial", "adversarial clean", "own length")
DDP_SETTINGS = {
    "plain": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


WRAPPED = {
    "ddp in a module": lambda model: nn.Sequential(DistributedDataParallel(model)),
    "ddp compiled": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "ddp of parts": lambda model: nn.Sequential(
        DistributedDataParallel(model[:2]), DistributedDataParallel(model[2:])
    ),
}


def make_model(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Tanh(), nn.Linear(8, 4)).double()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 4


def make_loss(mode: str) -> AverageMarginLoss:
    difference = FiniteDifference("backward", 0.3, "absolute")
    options = {
        "secant": {"margin": "secant"},
        # Each rank would draw noise of its own.
        "distance": {"margin": Distance(noise=0.0), "regularizer": "ramp"},
        "envelope": {"margin": Distance(form="envelope", noise=0.0)},
        "additive": {"margin": "additive", "regularizer": "ramp"},
        "finite_difference": {"gradient": difference},
        "auto": {"gradient": Auto(difference)},
    }.get(mode, {"gradient": mode})
    return AverageMarginLoss(**{"regularizer": "softplus", **options})


def make_peer(name: str) -> AdversarialTraining:
    options = {
        "adversarial clean": {"clean": 0.3},
        "own length": {"length": "own", "misclassified": "attack"},
    }.get(name, {})
    # Each rank would draw noise of its own.
    return AdversarialTraining(0.3, 2, noise=0.0, threat=ThreatModel(p=2), **options)


def whole(gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        return torch.zeros(0)
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def train(
    model: nn.Module,
    loss: AverageMarginLoss | AdversarialTraining,
    x,
    y,
    *,
    behind: bool = False,
    **settings,
) -> torch.Tensor:
    """Three steps, of the model or of a function that runs it; the gradients of the last."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = (lambda inputs: 1 * model(inputs)) if behind else model
    for _ in range(3):
        optimizer.zero_grad()
        loss.run(run, x, y, **settings).loss.backward()
        optimizer.step()
    return torch.cat([whole(p.grad).flatten() for p in model.parameters()])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    worst = ((found - wanted).norm() / wanted.norm()).reshape(1)
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    return float(worst)


def deferred_error(settings: dict, x, y) -> float:
    """Passes made in the backward against passes made in run; infinite where a hook fires twice."""
    gradients = []
    for deferred in (True, False):
        difference = FiniteDifference("central", 0.3, "absolute", deferred=deferred)
        loss = AverageMarginLoss(gradient=difference)
        model = DistributedDataParallel(make_model(), **settings)
        fired = []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(fired.append)
        gradients.append(train(model, loss, x, y))
        if len(fired) != 3 * len(list(model.parameters())):
            return float("inf")
    return error(*gradients)


def accumulated(loss: AverageMarginLoss, x, y) -> torch.Tensor:
    """A batch of four in two halves, of which the first sends nothing."""
    model = DistributedDataParallel(make_model())
    with model.no_sync():
        loss.run(model, x[:2], y[:2], normalizer=4.0).loss.backward()
    loss.run(model, x[2:], y[2:], normalizer=4.0).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def wrapped_errors(mode: str, wanted: torch.Tensor, mine: slice) -> dict[str, float | str]:
    x, y = make_batch()
    found: dict[str, float | str] = {}
    for name, wrap in WRAPPED.items():
        gradient = train(wrap(make_model()), make_loss(mode), x[mine], y[mine])
        found[f"{name} {mode}"] = error(gradient, wanted)
    for name, behind in {"fsdp": False, "fsdp behind a function": True}.items():
        model = shard(make_model())
        gradient = train(model, make_loss(mode), x[mine], y[mine], behind=behind)
        found[f"{name} {mode}"] = error(gradient, wanted)
    single = make_model()
    make_loss(mode).run(single, x, y).loss.backward()
    once = torch.cat([p.grad.flatten() for p in single.parameters()])
    gradient = accumulated(make_loss(mode), x[mine], y[mine])
    found[f"ddp accumulated {mode}"] = error(gradient, once)
    found[f"static graph behind a function, {mode}"] = told_behind_a_function(make_loss(mode))
    return found


def told_behind_a_function(loss: AverageMarginLoss | AdversarialTraining) -> str:
    model = DistributedDataParallel(make_model(), static_graph=True)
    return error_of(partial(loss.run, lambda v: 2 * model(v), *make_batch()))


def peer_errors(mine: slice) -> dict[str, float | str]:
    x, y = make_batch()
    wraps = {
        f"ddp {key}": lambda model, settings=settings: DistributedDataParallel(model, **settings)
        for key, settings in (DDP_SETTINGS | {"static": {"static_graph": True}}).items()
    }
    wraps |= WRAPPED | {"fsdp": shard}
    found: dict[str, float | str] = {}
    for name in PEERS:
        wanted = train(make_model(), make_peer(name), x, y)
        for key, wrap in wraps.items():
            gradient = train(wrap(make_model()), make_peer(name), x[mine], y[mine])
            found[f"{key} {name}"] = error(gradient, wanted)
        gradient = train(shard(make_model()), make_peer(name), x[mine], y[mine], behind=True)
        found[f"fsdp behind a function {name}"] = error(gradient, wanted)
        inside = nn.Sequential(DistributedDataParallel(make_model(), static_graph=True))
        run = partial(make_peer(name).run, inside, x[mine], y[mine])
        found[f"static graph inside, {name}"] = error_of(run)
        found[f"static graph behind a function, {name}"] = told_behind_a_function(make_peer(name))
    return found


def shard(model: nn.Sequential) -> nn.Sequential:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as raised:
        return str(raised)
    return "no error"


def with_fsdp1(x: torch.Tensor, y: torch.Tensor) -> dict[str, str | float]:
    """What FullyShardedDataParallel is told, and a loss that it serves."""
    model = FullyShardedDataParallel(make_model().float(), device_id=torch.device("cpu"))
    leaf = x.clone().requires_grad_()
    secant = AverageMarginLoss(margin="secant")
    calls = {
        "run double_backward": lambda: AverageMarginLoss().run(model, x, y),
        "run secant": lambda: secant.run(nn.Sequential(model), x, y),
        "forward": lambda: AverageMarginLoss()(model(leaf), y, leaf),
    }
    told = {f"fsdp1, {name}": error_of(call) for name, call in calls.items()}
    out = AverageMarginLoss(margin="logit_gap").run(model, x, y)
    out.loss.backward()
    return {**told, "fsdp1, logit_gap": float(out.loss.detach())}


def main(path: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    x, y = make_batch()
    mine = slice(4 * rank, 4 * rank + 4)
    found: dict[str, float | str] = {
        f"deferred, ddp {name}": deferred_error(settings, x[mine], y[mine])
        for name, settings in DDP_SETTINGS.items()
    }
    for mode in MODES:
        wanted = train(make_model(), make_loss(mode), x, y)
        for name, settings in DDP_SETTINGS.items():
            model = DistributedDataParallel(make_model(), **settings)
            gradient = train(model, make_loss(mode), x[mine], y[mine])
            found[f"ddp {name} {mode}"] = error(gradient, wanted)
        found |= wrapped_errors(mode, wanted, mine)

        uneven = slice(0, 3) if rank == 0 else slice(3, 8)
        model = DistributedDataParallel(make_model())
        gradient = train(model, make_loss(mode), x[uneven], y[uneven], normalizer=8 / 2)
        found[f"ddp uneven {mode}"] = error(gradient, wanted)

    found |= peer_errors(mine)

    for mode in MODES:  # BatchNorm has each rank's own statistics: the mean of the ranks' gradients
        model = DistributedDataParallel(make_model(norm=True))
        loss = make_loss(mode)
        loss.run(model, x[mine], y[mine]).loss.backward()
        single = make_model(norm=True)
        make_loss(mode).run(single, x[mine], y[mine]).loss.backward()
        wanted = torch.cat([p.grad.flatten() for p in single.parameters()])
        distributed.all_reduce(wanted)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[f"ddp batchnorm {mode}"] = error(gradient, wanted / 2)

    static = DistributedDataParallel(make_model(), static_graph=True)
    try:
        make_loss("detached").run(static, x[mine], y[mine])
        found["static graph, run"] = "no error"
    except RuntimeError as raised:
        found["static graph, run"] = str(raised)
    leaf = x[mine].clone().requires_grad_()
    try:
        make_loss("detached")(2 * static(leaf), y[mine], leaf)
        found["static graph, forward"] = "no error"
    except RuntimeError as raised:
        found["static graph, forward"] = str(raised)
    found["static graph, check"] = str(make_loss("double_backward").check(static, x[mine], y[mine]))
    try:
        make_loss("detached").check(shard(make_model()), x[mine], y[mine])
        found["fsdp, check"] = "no error"
    except ValueError as raised:
        found["fsdp, check"] = str(raised)

    found |= with_fsdp1(x[mine].float(), y[mine])
    uneven = slice(0, 3) if rank == 0 else slice(3, 8)
    labels = y.clone()
    labels[:3] = -100 if rank == 0 else labels[:3]
    joined = make_loss("detached").run(make_model(), x, y).statistics
    parts = make_loss("detached").run(make_model(), x[uneven], y[uneven]).statistics
    reduced = reduce_statistics(parts)
    for name in joined:
        if name != "gradient_scale":
            found[f"statistics {name}"] = float((reduced[name] - joined[name]).abs())
    empty = make_loss("detached").run(make_model(), x[uneven], labels[uneven]).statistics
    rest = make_loss("detached").run(make_model(), x[3:], y[3:]).statistics
    reduced = reduce_statistics(empty)
    found["statistics of an empty rank"] = float(
        (reduced.values_tensor[:-1] - rest.values_tensor[:-1]).abs().max()
    )
    if rank == 0:
        path.write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
