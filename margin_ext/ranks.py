"""The processes that work together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ALONE", "PATIENCE", "Ranks", "all_ranks", "started_ranks"]

# How long ranks wait for each other, for example while rank 0 measures. They do not wait for a rank
# that died, because torchrun then ends all of them.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together; by default it is alone.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        local: Number of this process on its machine, which is also that of its GPU.
        joined: Whether there is a process group.
        group: The process group; None: all ranks.

    Example:
        >>> ranks = Ranks(rank=1, size=2, local=1, joined=True)
        >>> ranks.is_main, ranks.device("cuda")
        (False, device(type='cuda', index=1))
        >>> ALONE.gather("a value")
        ['a value']
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    joined: bool = False
    group: ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and shows progress."""
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
        """The model, with gradients that are averaged over the processes.

        A model that ``fully_shard`` has split averages them itself.
        """
        if not self.joined or not any(p.requires_grad for p in model.parameters()):
            return model
        if any(hasattr(module, "_get_fsdp_state") for module in model.modules()):
            return model
        return DistributedDataParallel(model, process_group=self.group)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of rank 0, such as BatchNorm's running statistics."""
        if self.joined:
            for buffer in model.buffers():
                distributed.broadcast(buffer, group=self.group, group_src=0)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.joined:
            distributed.all_reduce(value, group=self.group)
            value /= self.size
        return value

    def minimum(self, value: Tensor) -> Tensor:
        """Smallest value over the processes."""
        if self.joined:
            distributed.all_reduce(value, distributed.ReduceOp.MIN, group=self.group)
        return value

    def broadcast_from_rank0(self, value: Any) -> Any:
        """The value that rank 0 has."""
        if not self.joined:
            return value
        values = [value]
        distributed.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on each of them."""
        if not self.joined:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values


ALONE = Ranks()


def all_ranks(group: ProcessGroup | None = None) -> Ranks:
    """The ranks of a process group that the program has made, for ``ranks=`` of `measure`.

    Args:
        group: The process group; None: all ranks.

    Raises:
        ValueError: There is no process group, or this process does not belong to it.

    Example:
        >>> torch.distributed.init_process_group()  # doctest: +SKIP
        >>> report = margin_ext.measure(model, data, ranks=all_ranks())  # doctest: +SKIP
    """
    if not distributed.is_available() or not distributed.is_initialized():
        raise ValueError(
            "there is no process group: start the program with torchrun, and call "
            "torch.distributed.init_process_group() first"
        )
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ValueError("this process does not belong to the process group")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return Ranks(rank, distributed.get_world_size(group), local, joined=True, group=group)


@contextmanager
def started_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the other processes if torchrun started this one.

    Args:
        device: Its kind decides the backend: nccl for "cuda", gloo otherwise. None: cuda if there
            is one.

    Raises:
        ValueError: There are more processes on this machine than GPUs.

    Example:
        >>> with started_ranks("cpu") as ranks:  # not started by torchrun
        ...     ranks.size
        1
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    place = None
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "gloo" if place is None else "nccl", timeout=PATIENCE, device_id=place
    )
    try:
        yield all_ranks()
    finally:
        distributed.destroy_process_group()
