"""Margins in the space of hidden activations, several layers at once (arXiv 1803.05598)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from margin_ext.gradient_mode import GradientMode
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.step import Step
from margin_ext.input_gradient import check_inputs
from margin_ext.op_results import MarginLoss

__all__ = ["layered_loss"]


def layered_loss(
    objective: Objective,
    mode: GradientMode,
    logits: Tensor,
    target: Tensor,
    activations: Sequence[Tensor],
    weights: Sequence[float] | None,
) -> MarginLoss:
    """Cross-entropy plus a weighted sum of one regularizer a layer.

    Args:
        objective: The loss; its mu multiplies every layer's regularizer.
        mode: Where the gradients come from.
        logits: [B, C] or [B, C, d1, ...].
        target: Labels, as the objective takes them.
        activations: Each [B, ...], tensors on the way from the inputs to the logits.
        weights: One a layer; None: 1 / number of layers each.

    Returns:
        The loss, with margin, norm and statistics of the first layer given.
    """
    if not activations:
        raise ValueError("inputs must name at least one tensor")
    if weights is None:
        weights = [1 / len(activations)] * len(activations)
    if len(weights) != len(activations):
        raise ValueError(
            f"layer_weights must be one for each of {len(activations)} inputs, got {len(weights)}"
        )
    labels = objective.labels(logits, target)
    parts = [
        mode(Step(objective, check_inputs(logits, layer), logits, labels)) for layer in activations
    ]
    cross_entropy = objective.cross_entropy(logits, labels)
    loss = cross_entropy
    for weight, part in zip(weights, parts, strict=True):
        loss = loss + weight * (part.loss - cross_entropy)
    return parts[0]._replace(loss=loss)
