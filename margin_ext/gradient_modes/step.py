"""What a gradient mode works on: one pass through the model, and the means to make another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from margin_ext.gradient_modes.deferral import Deferral
from margin_ext.gradient_modes.objective import Objective

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """A pass through the model whose margins enter the loss.

    Attributes:
        objective: The loss.
        inputs: [B, ...], requiring grad.
        logits: [B, C] or [B, C, d1, ...], computed from inputs, with their graph.
        target: Labels, as the objective takes them.
        model: What computed the logits; None where only the logits are known.
        rerun: Logits of other inputs [B, ...] under the same randomness and without touching the
            running statistics; None where only the logits are known, or the mode needs none.
        coupled: Whether a sample's logits depend on the other samples (BatchNorm in training);
            known where rerun is.
        deferral: Where reruns can be put off to the backward.
    """

    objective: Objective
    inputs: Tensor
    logits: Tensor
    target: Tensor
    model: nn.Module | None = None
    rerun: Callable[[Tensor], Tensor] | None = None
    coupled: bool = False
    deferral: Deferral | None = None
