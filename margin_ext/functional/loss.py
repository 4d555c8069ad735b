"""The fused loss: one op computes the loss and both gradients, the backward at most scales them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from margin_ext import reference
from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_logits_and_labels, check_loss_settings, check_same_device
from margin_ext.functional.dispatch import (
    by_rows,
    compiled_for,
    flat_channel_scale,
    labels_readable,
    match_width,
)
from margin_ext.functional.sample import sample_margin_loss
from margin_ext.norms import dual_exponent
from margin_ext.reference import MarginLoss
from margin_ext.reference.labels import one_class_each, per_position
from margin_ext.reference.margin_loss import REDUCTIONS
from margin_ext.regularizers import Regularizer
from margin_ext.statistics import STATISTIC_NAMES, BatchStatistics

__all__ = ["average_margin_loss"]

_GRADIENT_SCALE = STATISTIC_NAMES.index("gradient_scale")


class _Settings(NamedTuple):
    """Everything that is not a tensor."""

    p: float | str
    eps: float
    mu: float
    regularizer: Regularizer
    label_smoothing: float
    ignore_index: int
    reduction: str

    def for_op(self) -> tuple[float, float, float, int, float, float, float, int]:
        """The ops' arguments from q to ignore_index."""
        phi = self.regularizer
        return (
            dual_exponent(self.p),
            self.eps,
            self.mu,
            phi.code,
            phi.lo,
            phi.hi,
            self.label_smoothing,
            self.ignore_index,
        )


class _AverageMarginLoss(torch.autograd.Function):
    """Stores the finished gradients in the forward pass where that is exact, else recomputes them.

    Recomputed are per-sample losses, whose upstream is known in the backward only, and float16
    gradients: unscaled they underflow, and a loss scaler's factor comes with the backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        grad: Tensor | None,
        target: Tensor,
        critical: Tensor | None,
        class_weight: Tensor | None,
        input_scale: Tensor | None,
        settings: _Settings,
        with_graph: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        half = torch.float16 in (logits.dtype, None if grad is None else grad.dtype)
        # Under no_grad, too, ctx.needs_input_grad says what the tensors require.
        store = with_graph and settings.reduction != "none" and not half
        loss, margin, gap, norm, statistics, *stored = torch.ops.margin_ext.average_margin_loss(
            logits,
            target,
            grad,
            critical,
            class_weight,
            input_scale,
            *settings.for_op(),
            REDUCTIONS.index(settings.reduction),
            store and ctx.needs_input_grad[0],
            store and ctx.needs_input_grad[1],
        )
        ctx.settings = settings
        ctx.stored = stored if store else None
        ctx.save_for_backward(logits, grad, target, critical, class_weight, input_scale, statistics)
        ctx.mark_non_differentiable(margin, gap, norm, statistics)
        ctx.set_materialize_grads(False)
        return loss, margin, gap, norm, statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        if upstream is None:
            return None, None, *nothing
        need = ctx.needs_input_grad[:2]
        stored, statistics = ctx.stored, ctx.saved_tensors[-1]
        if torch.compiler.is_compiling() and stored is not None:
            # Nothing in place in a graph that the compiler may reorder; it fuses this itself.
            factor = upstream * statistics[_GRADIENT_SCALE]
            found = [
                (g * factor).to(g.dtype) if n else None for g, n in zip(stored, need, strict=True)
            ]
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _differentiable_gradients(ctx, upstream)
        elif stored is not None:
            # Given away, so never twice: a second backward (retain_graph) recomputes.
            ctx.stored = None
            torch.ops.margin_ext.scale_gradients_(*stored, upstream, statistics)
            found = [g if n else None for g, n in zip(stored, need, strict=True)]
        else:
            found = _recomputed_gradients(ctx, upstream)
        return found[0], found[1], *nothing


def _recomputed_gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    logits, grad, target, critical, class_weight, input_scale, statistics = ctx.saved_tensors
    settings: _Settings = ctx.settings
    if settings.reduction == "mean":
        batch = max(logits.shape[0], 1)
        upstream = upstream * (statistics[_GRADIENT_SCALE] / batch)
    gradients = torch.ops.margin_ext.average_margin_loss_backward(
        upstream.reshape(-1),
        logits,
        target,
        grad,
        critical,
        class_weight,
        input_scale,
        *settings.for_op(),
        *ctx.needs_input_grad[:2],
    )
    return [g if n else None for g, n in zip(gradients, ctx.needs_input_grad[:2], strict=True)]


def _differentiable_gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """Under create_graph: the reference, which is differentiable to any order."""
    logits, grad, target, critical, class_weight, input_scale, _ = ctx.saved_tensors
    # Aliases: the graph of grad may lead back to logits (a last layer whose backward reads its own
    # output, such as tanh), and that path is the caller's, not a part of these partial derivatives.
    logits = logits.view_as(logits)
    grad = None if grad is None else grad.view_as(grad)
    s: _Settings = ctx.settings
    loss = reference.average_margin_loss(
        logits,
        target,
        grad,
        regularizer=s.regularizer,
        mu=s.mu,
        p=s.p,
        eps=s.eps,
        critical=critical,
        weight=class_weight,
        ignore_index=s.ignore_index,
        label_smoothing=s.label_smoothing,
        reduction=s.reduction,
        input_std=None if input_scale is None else 1 / input_scale,
        validate=False,
    ).loss
    inputs = [logits, grad]
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:2]) if need]
    gradients = torch.autograd.grad(loss, [inputs[i] for i in wanted], upstream, create_graph=True)
    found: list[Tensor | None] = [None, None]
    for i, gradient in zip(wanted, gradients, strict=True):
        found[i] = gradient
    return found


def average_margin_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None = None,
    *,
    regularizer: Regularizer,
    mu: float = 1.0,
    p: float | str = 2,
    eps: float = 1e-6,
    critical: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    input_std: float | Sequence[float] | Tensor | None = None,
    positions: str = "mean",
    validate: bool = False,
) -> MarginLoss:
    """As :func:`margin_ext.reference.average_margin_loss`, in one pass over the data.

    On CPU labels are always checked. On CUDA a label out of range makes its sample, and so the
    loss, NaN (of dense logits with grad it stops the program in torch's kernels);
    ``validate=True`` checks there too, and synchronises.
    """
    if not one_class_each(logits, target):
        if critical is not None:
            raise ValueError("critical goes with class labels [B] only")
        if grad is None and not target.is_floating_point():
            return _loss_of_positions(
                logits,
                target,
                regularizer=regularizer,
                mu=mu,
                weight=weight,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                reduction=reduction,
                validate=validate,
            )
        return sample_margin_loss(
            logits,
            target,
            grad,
            regularizer=regularizer,
            mu=mu,
            p=p,
            eps=eps,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            input_std=input_std,
            positions=positions,
            validate=validate,
        )
    if not compiled_for(logits):
        return reference.average_margin_loss(
            logits,
            target,
            grad,
            regularizer=regularizer,
            mu=mu,
            p=p,
            eps=eps,
            critical=critical,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            input_std=input_std,
            validate=validate or labels_readable(logits),
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    check_same_device(
        "logits", logits, target=target, grad=grad, critical=critical, class_weight=weight
    )
    if validate:
        reference.logit_gap(logits.detach(), target, critical=critical, ignore_index=ignore_index)
    check_loss_settings(mu, eps, label_smoothing)
    if grad is not None:
        logits, grad = match_width(logits, grad)
    loss, margin, gap, norm, statistics = _AverageMarginLoss.apply(  # type: ignore[no-untyped-call]
        logits,
        grad,
        target,
        critical,
        None if weight is None else weight.to(accumulation_dtype(logits)),
        None if input_std is None or grad is None else flat_channel_scale(input_std, grad),
        _Settings(p, eps, mu, regularizer, label_smoothing, ignore_index, reduction),
        torch.is_grad_enabled(),
    )
    return MarginLoss(loss, margin, gap, norm, BatchStatistics(statistics))


def _loss_of_positions(logits: Tensor, target: Tensor, **settings: Any) -> MarginLoss:
    """The loss of every position's logit gap, as if positions were samples."""
    check_logits_and_labels(logits, target)
    out: MarginLoss = by_rows(average_margin_loss, logits, target, **settings)
    loss = per_position(out.loss, logits) if settings["reduction"] == "none" else out.loss
    return out._replace(
        loss=loss, margin=per_position(out.margin, logits), gap=per_position(out.gap, logits)
    )
