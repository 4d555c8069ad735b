"""Run by torchrun: what several processes measure, against one process that measures all.

Writes {scenario: [what each rank found]} as JSON to the path in its argument, from rank 0.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from distributed.measured import BOUNDS, COUNT, EPS, digest, make_data, make_model
from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD, Nearest
from margin_ext.data import PerRank
from margin_ext.distributed import Ranks, all_ranks
from margin_ext.gradient_modes.parallel import shard_groups

MARGINS: dict[str, Any] = {"bounds": BOUNDS, "p": (2, "inf")}
NEAREST = Nearest(search=BOUNDS[0])
ATTACKS: dict[str, Any] = {"attacks": [NEAREST, PGD(steps=5)]}


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Whole batches of sizes that nobody knows before."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = make_data(sum(self.sizes))
        yield from zip(x.split(self.sizes), y.split(self.sizes), strict=True)


class Crops:
    """A data set with two inputs in each sample, as some loaders of crops have."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = make_data(24)
        return x[2 * index : 2 * index + 2], y[2 * index : 2 * index + 2]


def joined(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in samples]), torch.cat([y for _, y in samples])


def equal(one: Any, other: Any) -> bool:
    return digest(one) == digest(other)


def measured_alike(ranks: Ranks) -> dict[str, Any]:
    """Whether this rank's report is that of one process, by the kind of data."""
    model, (x, y) = make_model(), make_data()
    whole = TensorDataset(x, y)
    sources: dict[str, Callable[[], Any]] = {
        "tensors": lambda: (x, y),
        "data set": lambda: whole,
        "loader": lambda: DataLoader(whole, batch_size=8),
        "loader with workers": lambda: DataLoader(whole, batch_size=20, num_workers=1),
        "shuffling loader": lambda: DataLoader(whole, batch_size=8, shuffle=True),
        "generator": lambda: zip(x.split(5), y.split(5), strict=True),
        "stream": lambda: DataLoader(Stream([5, 9, 1, 1, 7]), batch_size=None),
        "fewer batches than ranks": lambda: DataLoader(whole, batch_size=30),
        "one batch": lambda: [(x, y)],
    }
    found = {}
    for name, source in sources.items():
        size = 8 if name in ("tensors", "data set") else None
        torch.manual_seed(7)
        one = measure(model, source(), batch_size=size, **MARGINS)
        torch.manual_seed(7)
        several = measure(model, source(), batch_size=size, ranks=ranks, **MARGINS)
        found[name] = equal(one, several)
    limited = {"batch_size": 4, "limit": 21, **MARGINS}
    found["limit"] = equal(
        measure(model, (x, y), **limited), measure(model, (x, y), ranks=ranks, **limited)
    )
    parts = {"batch_size": 16, "max_memory": "6KB", "bounds": BOUNDS[:1]}
    found["parts of a batch"] = equal(
        measure(model, (x, y), **parts), measure(model, (x, y), ranks=ranks, **parts)
    )
    state = torch.get_rng_state()
    measure(model, DataLoader(whole, batch_size=8, shuffle=True), ranks=ranks)
    found["random states are left"] = bool(torch.equal(torch.get_rng_state(), state))
    wrapped = DistributedDataParallel(make_model())
    found["ddp"] = equal(
        measure(model, (x, y), batch_size=8, **MARGINS),
        measure(wrapped, (x, y), batch_size=8, ranks=ranks, **MARGINS),
    )
    half = distributed.new_group([0, 1])
    if ranks.rank < 2:
        pair = measure(model, (x, y), batch_size=8, ranks=all_ranks(half), **MARGINS)
        found["two of the ranks"] = equal(measure(model, (x, y), batch_size=8, **MARGINS), pair)
    return found


def attacked_alike(ranks: Ranks) -> dict[str, Any]:
    model, data = make_model(), make_data(150)
    found = {}
    for name, size in {"attacks": 8, "attacks, one batch": 150}.items():
        one = robust_accuracy(model, data, EPS, batch_size=size, **ATTACKS)
        several = robust_accuracy(model, data, EPS, batch_size=size, ranks=ranks, **ATTACKS)
        found[name] = equal(one, several)
    report = measure(model, data, batch_size=8, bounds=BOUNDS, ranks=ranks)
    options = {"batch_size": 8, "report": report, "transfer": make_model(), **ATTACKS}
    one = robust_accuracy(model, data, EPS, **options)
    several = robust_accuracy(model, data, EPS, ranks=ranks, **options)
    found["attacks with a report"] = equal(one, several)
    return found


def own_data(ranks: Ranks) -> dict[str, Any]:
    """Data that each rank reads for itself."""
    model, (x, y) = make_model().double(), make_data()
    x = x.double()
    whole = TensorDataset(x, y)
    sampler = DistributedSampler(whole, ranks.size, ranks.rank, shuffle=False)
    loader = PerRank(DataLoader(whole, batch_size=4, sampler=sampler))
    one = measure(model, (x, y), batch_size=4, **MARGINS)
    several = measure(model, loader, limit=COUNT, ranks=ranks, **MARGINS)
    worst = max(
        float(abs(one.columns()[name] - column.astype(float)).max())
        for name, column in several.columns().items()
    )
    # Rank 0 has none, rank 1 three and rank 2 five.
    count = (0, 3, 5, 0)[ranks.rank]
    few = measure(model, PerRank([(x[:count], y[:count])] * (count > 0)), ranks=ranks)
    return {"own data": worst, "own data of other sizes": len(few)}


def split_models(ranks: Ranks) -> dict[str, Any]:
    model, (x, y) = make_model(), make_data()
    split = copy.deepcopy(model)
    for layer in split:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(split)
    found: dict[str, Any] = {"fsdp alone": problem(lambda: measure(split, (x, y)))}
    before = gradient(split, ranks)
    settings = [(g.post_forward_mesh_info, g.reshard_after_backward) for g in shard_groups(split)]
    several = measure(split, (x, y), batch_size=8, ranks=ranks, **MARGINS)
    found["fsdp"] = equal(measure(model, (x, y), batch_size=8, **MARGINS), several)
    # A rank without a batch takes part as well.
    found["fsdp, one batch"] = equal(
        measure(model, (x, y), **MARGINS), measure(split, (x, y), ranks=ranks, **MARGINS)
    )
    found["fsdp, attacks"] = equal(
        robust_accuracy(model, (x, y), EPS, batch_size=8, **ATTACKS),
        robust_accuracy(split, (x, y), EPS, batch_size=8, ranks=ranks, **ATTACKS),
    )
    kept = [(g.post_forward_mesh_info, g.reshard_after_backward) for g in shard_groups(split)]
    found["fsdp is left as it was"] = settings == kept and bool(
        torch.equal(before, gradient(split, ranks))
    )
    parallel = make_model()
    mesh = init_device_mesh("cpu", (ranks.size,))
    parallel[0].weight = nn.Parameter(distribute_tensor(parallel[0].weight.data, mesh, [Shard(0)]))
    found["tensor parallel"] = problem(lambda: measure(parallel, (x, y), ranks=ranks))
    one = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"))
    found["fsdp1"] = problem(lambda: measure(one, (x, y), ranks=ranks))
    return found


def gradient(model: nn.Module, ranks: Ranks) -> Tensor:
    x, y = make_data()
    model.zero_grad()
    nn.functional.cross_entropy(model(x[ranks.rank :: ranks.size][:8]), y[:8] * 0).backward()
    gradients = [p.grad.full_tensor().flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients)


def problem(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class FailsLater(nn.Module):
    """Fails on rank 1 after some passes."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.inner, self.rank, self.passes = make_model(), rank, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.rank == 1 and self.passes > 5:
            raise MemoryError("no memory left here")
        return self.inner(x)  # type: ignore[no-any-return]


def errors(ranks: Ranks, folder: Path) -> dict[str, Any]:
    model, (x, y) = make_model(), make_data()
    first = ranks.rank == 1
    other = make_model()
    if first:
        with torch.no_grad():
            other[0].weight[0, 0] += 1
    nan = x.clone()
    nan[-1] = torch.nan
    late = FailsLater(ranks.rank)
    sampler = DistributedSampler(TensorDataset(x, y), ranks.size, ranks.rank)
    folded = DataLoader(TensorDataset(x, y), batch_size=4, sampler=sampler)
    crops = DataLoader(Crops(), batch_size=3, collate_fn=joined)  # type: ignore[arg-type]
    common: dict[str, Any] = {"batch_size": 4, "ranks": ranks}
    calls: dict[str, Callable[[], object]] = {
        "one rank's argument": lambda: measure(model, (x, y), p=0.5 if first else 2, **common),
        "one rank's data": lambda: measure(model, (nan, y), **common),
        "one rank's model, in the middle": lambda: measure(late, (x, y), **common),
        "another model": lambda: measure(other, (x, y), **common),
        "another seed": lambda: measure(model, (x, y), seed=int(first), **common),
        "other tensors": lambda: measure(model, (x, y.flip(0) if first else y), **common),
        "another stream": lambda: measure(model, [(x, y.flip(0) if first else y)] * 4, ranks=ranks),
        "distributed sampler": lambda: measure(model, folded, ranks=ranks),
        "batches of another size": lambda: measure(model, crops, ranks=ranks),
        "no samples": lambda: measure(model, [], ranks=ranks),
        "no samples of their own": lambda: measure(model, PerRank([]), ranks=ranks),
        "a folder that is a file": lambda: measure(
            model, (x, y), resume=folder / ("file/x" if first else "right.npz"), **common
        ),
        "an attack": lambda: robust_accuracy(
            model, (x, y), 0.1, attacks=["no such" if first else "gap"], **common
        ),
    }
    return {name: problem(call) for name, call in calls.items()}


def main(path: Path) -> None:
    distributed.init_process_group("gloo")
    ranks = all_ranks()
    (path.parent / "file").touch()
    found = {**measured_alike(ranks), **attacked_alike(ranks), **own_data(ranks)}
    found |= {**split_models(ranks), **errors(ranks, path.parent)}
    everyone = ranks.gather(found)
    if ranks.is_main:
        path.write_text(json.dumps({name: [one.get(name) for one in everyone] for name in found}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
