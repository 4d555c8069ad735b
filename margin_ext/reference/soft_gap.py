"""The gap of a label that is a distribution over the classes (docs/labels.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_logits_and_labels, check_probabilities, shape_text
from margin_ext.op_results import SoftGap

__all__ = ["argmax_excluding", "soft_gap"]


def soft_gap(
    logits: Tensor, target: Tensor, *, nearest: Tensor | None = None, validate: bool = True
) -> SoftGap:
    """The expectation of the logit gap over the label, sum_c q_c (z_c - max_{k != c} z_k).

    If t and s are the classes of the largest and the second largest logit, it equals
    q . z - z_t + q_t (z_t - z_s). For a one-hot label it is the logit gap. Ties: the lowest class.

    Args:
        logits: z [N, C], C >= 2.
        target: q [N, C]; the elements of each row are at least 0, and their sum is 1.
        nearest: int64 [N, 2], the classes to take as t and s.
        validate: Check that target holds probabilities (synchronises with a GPU).

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or target holds no probabilities.

    Example:
        >>> soft_gap(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])).gap
        tensor([0.])
    """
    check_logits_and_labels(logits, target)
    if logits.dim() != 2 or not target.is_floating_point():
        raise ValueError(
            "soft_gap takes logits [N, C] and probabilities [N, C], got logits "
            f"{shape_text(logits)} and target {shape_text(target)} {target.dtype}"
        )
    if validate:
        check_probabilities(target)
    z = logits.to(accumulation_dtype(logits))
    q = target.to(z.dtype)
    if nearest is None:
        nearest = _two_largest(z.detach())
    elif nearest.shape != (logits.shape[0], 2):
        raise ValueError(
            f"nearest must be [N, 2] = [{logits.shape[0]}, 2], got {shape_text(nearest)}"
        )
    largest, second = z.gather(1, nearest).unbind(1)
    weight = q.gather(1, nearest[:, :1]).squeeze(1)
    # Classes of probability 0 do not enter, though their logits may be masked with -inf.
    expected = torch.where(q == 0, 0.0, q * torch.where(q == 0, 0.0, z)).sum(1)
    lead = torch.where(weight == 0, 0.0, largest - second)
    return SoftGap(expected - largest + weight * lead, nearest)


def _two_largest(z: Tensor) -> Tensor:
    largest = z.argmax(dim=1, keepdim=True)
    second = argmax_excluding(z.scatter(1, largest, -math.inf), largest)
    return torch.cat([largest, second], dim=1)


def argmax_excluding(others: Tensor, excluded: Tensor) -> Tensor:
    """Argmax over dim 1, never ``excluded`` [N, 1], where the caller has written -inf."""
    index = others.argmax(dim=1, keepdim=True)
    # All others may be -inf too: then the lowest class that is not the excluded one.
    return torch.where(index == excluded, torch.where(excluded == 0, 1, 0), index)
