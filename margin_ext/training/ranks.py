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

# The first rank measures while the others wait. A rank that died is not waited for: torchrun ends
# the others.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Its number.
        size: Number of processes.
        local: Its number on this machine, which is also that of its GPU.
        joined: Whether they have a process group.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    joined: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that measures and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This process's device; of several on "cuda" each has its own."""
        return torch.device(f"cuda:{self.local}" if self.joined and name == "cuda" else name)

    def share(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch of sample numbers [B], and what its mean loss counts.

        DistributedDataParallel averages gradients over the processes. With these factors the
        average is that of the whole batch, also where the parts are of different sizes. A process
        without a part computes a sample that counts nothing: all have to take part in a step.
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
        """Smallest value of all processes."""
        if self.joined:
            distributed.all_reduce(value, distributed.ReduceOp.MIN)
        return value

    def told_by_first(self, value: Any) -> Any:
        """What the first process knows."""
        if not self.joined:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]


ALONE = Ranks()


@contextmanager
def started_ranks(device: str) -> Iterator[Ranks]:
    """Join the others where torchrun started this process.

    Args:
        device: Its kind decides how they talk: nccl for "cuda", gloo otherwise.

    Raises:
        ValueError: There are more processes on this machine than GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    place = None
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
