"""The input gradient of each sample's gap, and the class that the gap is measured to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.checks import check_classes
from margin_ext.functional import first_order_margin, gap_cotangent, logit_gap
from margin_ext.loss_settings import LossSettings
from margin_ext.movable_inputs import require_movable, require_same_batch
from margin_ext.second_derivative import require_path

__all__ = ["check_inputs", "gradient_by_inputs", "input_gradient", "nearest_class"]


def check_inputs(logits: Tensor, inputs: Any) -> Tensor:
    """Require inputs [B, ...] that logits were computed from, with the graph still there."""
    if inputs is None:
        raise ValueError(
            "the first-order margin needs the inputs: call criterion(logits, target, inputs), "
            'or use margin="logit_gap"'
        )
    given = require_movable(inputs)
    if not given.requires_grad:
        raise ValueError(
            "inputs must require grad before the model sees them: call inputs.requires_grad_() "
            "and compute the logits after it"
        )
    if not logits.requires_grad:
        raise ValueError(
            "logits have no graph: they were computed under torch.no_grad() or from detached "
            "inputs, so there is no input gradient to take"
        )
    require_same_batch(given, logits)
    return given


def gradient_by_inputs(
    logits: Tensor, inputs: Tensor, cotangent: Tensor, *, create_graph: bool
) -> Tensor:
    """Gradient of the sum of the gaps by the inputs, given their gradient by the logits.

    Args:
        logits: [B, C] or [B, C, d1, ...], computed from ``inputs``.
        inputs: [B, ...].
        cotangent: The shape and type of logits, without a graph.
        create_graph: Keep a graph, to differentiate the result.

    Returns:
        The shape and type of inputs.

    Raises:
        ValueError: Inputs are not in the graph of logits.
        SecondDerivativeError: With create_graph, where the result cannot be differentiated.
    """
    if create_graph:
        # A differentiable gradient leads back to it; one that is constant would raise no error.
        cotangent.requires_grad_()
    (grad,) = torch.autograd.grad(
        logits, inputs, cotangent, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    if grad is None:
        raise ValueError(
            "inputs are not in the graph of logits: pass the very tensor that the model was "
            "called with, not a copy or a view made of it"
        )
    if create_graph:
        require_path(grad, cotangent, logits)
    return grad


def input_gradient(
    logits: Tensor, inputs: Tensor, target: Tensor, nearest: Tensor, *, create_graph: bool
) -> Tensor:
    """Gradient of gap_i = z_y - z_nearest by its own input, for every sample of the batch.

    It is taken of the sum of the gaps, so where samples share statistics (BatchNorm in training)
    each row also carries its sample's effect on the others' gaps.

    Args:
        logits: [B, C], computed from ``inputs``.
        inputs: [B, ...].
        target: int64 [B].
        nearest: int64 [B]; -1 (ignored samples) gives a zero gradient.
        create_graph: Keep a graph, to differentiate the result.

    Returns:
        The shape and type of inputs.
    """
    ones = logits.new_ones(logits.shape[0]).detach()
    cotangent = gap_cotangent(logits.detach(), target, nearest, ones)
    return gradient_by_inputs(logits, inputs, cotangent, create_graph=create_graph)


def nearest_class(
    logits: Tensor,
    inputs: Tensor,
    target: Tensor,
    classes: str | int,
    settings: LossSettings,
) -> Tensor:
    """The class whose first-order margin is smallest, int64 [B], -1 for ignored samples.

    Args:
        logits: [B, C], computed from ``inputs``.
        inputs: [B, ...].
        target: int64 [B].
        classes: "runner_up" looks only at the class of the largest other logit; k at the k largest
            others (all, where there are fewer), with k gradient passes; "all" at every other class,
            with C - 1.
        settings: How margins are measured, and which samples are ignored.
    """
    check_classes(classes)
    s, z = settings, logits.detach()
    runner_up = logit_gap(z, target, ignore_index=s.ignore_index).runner_up
    others = z.shape[1] - 1
    count = {"runner_up": 1, "all": others}.get(classes) if isinstance(classes, str) else classes
    assert count is not None
    count = min(count, others)
    if count == 1:
        return runner_up
    valid = runner_up >= 0
    label = torch.where(valid, target, 0).unsqueeze(1)
    rivals = z.scatter(1, label, -torch.inf).topk(count, dim=1).indices
    best = torch.full_like(runner_up, -1)
    smallest = torch.full(z.shape[:1], torch.inf, dtype=torch.float64, device=z.device)
    for k in range(count):
        candidate = torch.where(valid, rivals[:, k], -1)
        gap = z.gather(1, label).squeeze(1) - z.gather(1, rivals[:, k : k + 1]).squeeze(1)
        grad = input_gradient(logits, inputs, target, candidate, create_graph=False)
        gap = gap.to(torch.promote_types(gap.dtype, torch.float32))
        found = first_order_margin(gap, grad, p=s.p, eps=s.eps, input_std=s.input_std)
        margin = found.margin.to(torch.float64)
        # Where other classes are masked with -inf too, topk may name the label itself.
        closer = valid & (candidate != target) & ((margin < smallest) | (best < 0))
        best = torch.where(closer, candidate, best)
        smallest = torch.where(closer, margin, smallest)
    return best
