"""The state of a model and its optimizer in one piece, also where ranks hold parts of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from margin_ext.measurement.split_models import is_split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

__all__ = ["load_whole_state", "whole_state"]


def whole_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of model and optimizer.

    Where ``fully_shard`` has split the model, all ranks have to ask, and rank 0 gets the states.
    """
    if not is_split(model):
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    of_model, of_optimizer = get_state_dict(model, optimizer, options=options)
    return dict(of_model), dict(of_optimizer)


def load_whole_state(
    model: nn.Module,
    optimizer: Optimizer,
    of_model: Mapping[str, Any],
    of_optimizer: Mapping[str, Any],
) -> None:
    """Load what `whole_state` gave; each rank takes its part."""
    if not is_split(model):
        model.load_state_dict(of_model)
        optimizer.load_state_dict(dict(of_optimizer))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer,
        model_state_dict=dict(of_model),
        optim_state_dict=dict(of_optimizer),
        options=StateDictOptions(full_state_dict=True),
    )
