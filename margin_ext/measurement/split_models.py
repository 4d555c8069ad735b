"""Models whose parameters are split over ranks, such as by ``fully_shard``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import distributed

from margin_ext.modules_behind import modules_behind

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin_ext.ranks import Ranks

__all__ = ["is_split", "refuse_split_alone"]


def is_split(model: Callable[..., Any]) -> bool:
    """Whether each rank holds only a part of the model, so that ranks have to run it together."""
    return any(
        # A DTensor; the type is not imported, because only few programs have one.
        getattr(getattr(parameter, "device_mesh", None), "size", lambda: 1)() > 1
        for module in modules_behind(model)
        for parameter in module.parameters()
    )


def refuse_split_alone(model: Callable[..., Any], ranks: Ranks) -> None:
    """Raise where one rank would run what all have to run together, and so wait forever."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if any(
        kind.__name__ == "FullyShardedDataParallel"
        for module in modules_behind(model)
        for inner in module.modules()
        for kind in type(inner).__mro__
    ):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) cannot be measured: load its full state dict into a "
            "model that is not wrapped, or shard it by fully_shard (FSDP2)"
        )
    if is_split(model) and not ranks.joined:
        raise ValueError(
            "the model's parameters are split over ranks (fully_shard or another DTensor), so that "
            "all have to run it together: call this on every rank with ranks=all_ranks() from "
            "margin_ext.distributed, or measure a whole copy of the model"
        )
