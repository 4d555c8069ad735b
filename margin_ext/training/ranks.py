"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ALONE", "Ranks", "started_ranks"]

# Rank 0 measures while the others wait. None waits for a rank that died: torchrun ends them all.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        local: Number of this process on its machine, which is also that of its GPU.
        joined: Whether there is a process group.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    joined: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which measures and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process; on "cuda" each process has a GPU of its own."""
        return torch.device(f"cuda:{self.local}" if self.joined and name == "cuda" else name)

    def part(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch of sample numbers [B], and the weight of its mean loss.

        DistributedDataParallel averages gradients over the processes. With these weights the
        average is that of the whole batch, also where the parts are of different sizes. A process
        without a part computes one sample with weight 0, because all have to take part in a step.

        >>> Ranks(rank=1, size=2).part(torch.arange(5))
        (tensor([3, 4]), 0.8)
        """
        if self.size == 1:
            return batch, 1.0
        part = batch.tensor_split(self.size)[self.rank]
        if not part.numel():
            return batch[:1], 0.0
        return part, part.numel() * self.size / batch.numel()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model, with gradients that are averaged over the processes."""
        if not self.joined or not any(p.requires_grad for p in model.parameters()):
            return model
        return DistributedDataParallel(model)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.joined:
            distributed.all_reduce(value)
            value /= self.size
        return value

    def minimum(self, value: Tensor) -> Tensor:
        """Smallest value over the processes."""
        if self.joined:
            distributed.all_reduce(value, distributed.ReduceOp.MIN)
        return value

    def broadcast_from_rank0(self, value: Any) -> Any:
        """The value that rank 0 has."""
        if not self.joined:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()


@contextmanager
def started_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the other processes if torchrun started this one.

    Args:
        device: Its kind decides the backend: nccl for "cuda", gloo otherwise. None: cuda if there
            is one.

    Raises:
        ValueError: There are more processes on this machine than GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    place = None
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "gloo" if place is None else "nccl", timeout=_PATIENCE, device_id=place
    )
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local, joined=True)
    finally:
        distributed.destroy_process_group()
