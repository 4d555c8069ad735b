"""A model's logits, checked once for all that is measured on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.checks import FLOAT_TYPES, shape_text

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["checked_logits", "class_order", "require_graph"]


def checked_logits(model: Model, inputs: Tensor) -> Tensor:
    """Run the model and require finite logits [B, C] of a floating type, C >= 2.

    Raises:
        TypeError: The model does not return a floating tensor.
        ValueError: The logits have another shape, or hold NaN or infinity.
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return a tensor of logits [B, C], got {type(logits).__name__}; "
            "take them from its output with logits_fn=, such as lambda output: output.logits"
        )
    if logits.dim() != 2 or logits.shape[0] != inputs.shape[0] or logits.shape[1] < 2:
        one = logits.dim() < 3 and logits.numel() == inputs.shape[0]
        hint = (
            "; one logit z of two classes: logits_fn=lambda z: torch.cat([-z / 2, z / 2], 1)"
            if one
            else ""
        )
        raise ValueError(
            f"the model must return logits [B, C] with B = {inputs.shape[0]} and C >= 2, "
            f"got {shape_text(logits)} for inputs {shape_text(inputs)}{hint}"
        )
    if logits.dtype not in FLOAT_TYPES:
        raise TypeError(f"the logits must be of a floating type, got {logits.dtype}")
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0, 0])
        raise ValueError(
            f"the model returned NaN or infinite logits (first at sample {bad} of a batch of "
            f"{inputs.shape[0]}): check the checkpoint and the inputs' normalisation"
        )
    return logits


def class_order(logits: Tensor, label: Tensor) -> Tensor:
    """Classes other than the label, largest logit first [B, C - 1]; ties: the lowest class."""
    others = logits.detach().scatter(1, label.unsqueeze(1), -torch.inf)
    return others.sort(dim=1, descending=True, stable=True).indices[:, :-1]


def require_graph(logits: Tensor) -> None:
    """Raise where autograd sees no way from the logits to the inputs."""
    if not logits.requires_grad:
        raise ValueError(
            "the logits do not depend on the inputs in autograd's graph: the model is constant, or "
            "it detaches its input, runs under no_grad or leaves PyTorch"
        )
