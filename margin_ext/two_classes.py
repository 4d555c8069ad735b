"""One logit as two classes: a binary classifier with the logits 0 and z."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["two_class_logits", "two_class_target"]


def two_class_logits(logits: Tensor) -> Tensor:
    """Logits [B, 2, ...] of the classes 0 and 1 for one logit, [B] or [B, 1, ...]; others as given.

    The cross-entropy of (0, z) is the binary cross-entropy of z, and the gap of label 1 is z.

    Example:
        >>> two_class_logits(torch.tensor([[3.0], [-1.0]]))
        tensor([[ 0.,  3.],
                [ 0., -1.]])
    """
    if logits.dim() == 1:
        logits = logits.unsqueeze(1)
    if logits.dim() < 2 or logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def two_class_target(logits: Tensor, target: Tensor) -> Tensor:
    """The target of logits [B, 2, ...] as classes or as probabilities of both classes.

    Args:
        logits: Of two classes.
        target: int64 or floating, [B, ...] or [B, 1, ...]; where floating, the probability of
            class 1, as BCEWithLogitsLoss takes it. Targets of other shapes are returned as given.

    Example:
        >>> two_class_target(torch.zeros(2, 2), torch.tensor([[1.0], [0.25]]))
        tensor([[0.0000, 1.0000],
                [0.7500, 0.2500]])
    """
    positions = logits.shape[:1] + logits.shape[2:]
    if logits.shape[1] == 2 and target.shape == (*logits.shape[:1], 1, *logits.shape[2:]):
        target = target.squeeze(1)
    if logits.shape[1] != 2 or target.shape != positions or not target.is_floating_point():
        return target
    return torch.stack([1 - target, target], dim=1)
