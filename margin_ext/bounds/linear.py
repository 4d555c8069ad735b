"""Recognising linear classifiers, whose first-order margins are exact distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from margin_ext.bounds.plain_layers import why_not_plain

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["is_linear"]

# Affine maps in eval mode, and changes of shape.
_AFFINE = (nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.BatchNorm1d)


def is_linear(model: Model) -> bool:
    """Whether the model is provably affine: a Linear, or a Sequential of affine layers.

    A module with a forward of its own may do anything, so it is never counted as linear.
    """
    if not isinstance(model, nn.Module) or why_not_plain(model) is not None:
        return False
    if type(model) is nn.Sequential:
        return all(is_linear(layer) for layer in model)
    # Without running statistics BatchNorm couples the samples, in eval mode too.
    return type(model) in _AFFINE and getattr(model, "running_mean", 0) is not None
