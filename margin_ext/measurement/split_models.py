"""Models whose parameters are split over ranks, such as by ``fully_shard``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import distributed

from margin_ext.gradient_modes.parallel import shard_groups
from margin_ext.modules_behind import modules_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin_ext.together import Together

__all__ = ["is_split", "whole_model"]


def is_split(model: Callable[..., Any]) -> bool:
    """Whether each rank holds only a part of the model, so that ranks have to run it together."""
    return any(
        # A DTensor; the type is not imported, because only few programs have one.
        getattr(getattr(parameter, "device_mesh", None), "size", lambda: 1)() > 1
        for module in modules_behind(model)
        for parameter in module.parameters()
    )


@contextmanager
def whole_model(model: Callable[..., Any], meeting: Together) -> Iterator[None]:
    """Let every rank hold all parameters of a model that ``fully_shard`` has split.

    So each rank runs the model on its own batches, as often as they need, without the others.

    Args:
        model: The function that is measured.
        meeting: The ranks, all of which come here.

    Raises:
        ValueError: This process would measure such a model alone, and wait forever; or the model is
            split in another way.
    """
    _refuse_fsdp1(model)
    if not is_split(model):
        yield
        return
    if not meeting.ranks.joined:
        raise ValueError(
            "the model's parameters are split over ranks (fully_shard or another DTensor), so that "
            "all have to run it together: call this on every rank with ranks=all_ranks() from "
            "margin_ext.distributed, or measure a whole copy of the model"
        )
    groups = [group for module in modules_behind(model) for group in shard_groups(module)]
    before = [(group.post_forward_mesh_info, group.reshard_after_backward) for group in groups]
    meeting.exchange()
    try:
        for group in groups:
            group.post_forward_mesh_info, group.reshard_after_backward = None, False
            for module in group.modules:
                module.unshard()
        if is_split(model):
            raise ValueError(
                "the model's parameters are split over ranks by something else than fully_shard, "
                "such as tensor parallelism: measure a whole copy of the model"
            )
        yield
    finally:
        for group, (mesh, reshard) in zip(groups, before, strict=True):
            for module in group.modules:
                module.reshard()
            group.post_forward_mesh_info, group.reshard_after_backward = mesh, reshard


def _refuse_fsdp1(model: Callable[..., Any]) -> None:
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if any(
        kind.__name__ == "FullyShardedDataParallel"
        for module in modules_behind(model)
        for inner in module.modules()
        for kind in type(inner).__mro__
    ):
        raise ValueError(
            "a model in FullyShardedDataParallel (FSDP1) cannot be measured: load its full state "
            "dict into a model that is not wrapped, or shard it by fully_shard (FSDP2)"
        )
