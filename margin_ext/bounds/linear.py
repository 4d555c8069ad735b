"""Recognising linear classifiers, whose first-order margins are exact distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from margin_ext.models.plain_layers import plain_layers

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["is_linear"]

# Affine maps in eval mode, and changes of shape.
_AFFINE = (nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.BatchNorm1d)


def is_linear(model: Model) -> bool:
    """Whether the model is provably affine: a Linear, or a Sequential of affine layers.

    A module with a forward of its own, or with hooks, may do anything, so it is never counted as
    linear.

    Example:
        >>> is_linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        True
    """
    try:
        layers = plain_layers(model)
    except TypeError:
        return False
    # Without running statistics BatchNorm couples the samples, in eval mode too; in training mode
    # Dropout and BatchNorm are another matter.
    return all(
        type(layer) in _AFFINE
        and getattr(layer, "running_mean", 0) is not None
        and not (isinstance(layer, (nn.Dropout, nn.BatchNorm1d)) and layer.training)
        for layer in layers
    )
