"""The fused loss: one op computes the loss and both gradients; the backward only scales them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_same_device, values_readable
from margin_ext.functional.class_gap import check_class_labels, refuse_nearest
from margin_ext.functional.dispatch import (
    compiled_for,
    fallback,
    flat_channel_scale,
    match_accumulation,
)
from margin_ext.loss_settings import LossSettings, Reduction
from margin_ext.norms import op_exponent
from margin_ext.op_results import MarginLoss
from margin_ext.statistics import STATISTIC_NAMES, BatchStatistics

__all__ = ["fused_loss"]

# RegularizerKind::kAdditive in csrc/core/regularizer.h, which is no function of the margin.
_ADDITIVE = 5
_REDUCTIONS = get_args(Reduction)
_GRADIENT_SCALE = STATISTIC_NAMES.index("gradient_scale")


_OpSettings: TypeAlias = tuple[float, float, float, int, float, float, float, int]


def _op_settings(
    settings: LossSettings, tau: float | None, dtype: torch.dtype, with_grad: bool
) -> _OpSettings:
    """The ops' arguments from q to ignore_index; tau belongs to the additive margin.

    dtype: the accumulation dtype, which has to hold the settings.
    """
    if torch.compiler.is_compiling():
        return _checked_op_settings(settings, tau, dtype, with_grad)
    key = "op settings", tau, dtype, with_grad
    known: _OpSettings | None = settings.derived.get(key)
    if known is None:
        known = settings.derived[key] = _checked_op_settings(settings, tau, dtype, with_grad)
    return known


def _checked_op_settings(
    settings: LossSettings, tau: float | None, dtype: torch.dtype, with_grad: bool
) -> _OpSettings:
    settings.check_type(dtype, with_grad=with_grad)
    code, lo, hi = _ADDITIVE, 0.0, tau
    if hi is None:
        phi = settings.phi
        assert phi.code is not None
        code, lo, hi = phi.code, phi.lo, phi.hi
    return (
        op_exponent(settings.p),
        settings.eps,
        settings.mu,
        code,
        lo,
        hi,
        settings.label_smoothing,
        settings.ignore_index,
    )


class _Call:
    """One call of the op: what it takes besides logits and grad, and then what it returned."""

    __slots__ = ("op_settings", "results", "settings", "tau", "tensors")

    def __init__(
        self,
        tensors: tuple[Tensor | None, ...],
        settings: LossSettings,
        tau: float | None,
        op_settings: _OpSettings,
    ) -> None:
        self.tensors = tensors  # target, nearest, class_weight, input_scale
        self.settings = settings
        self.tau = tau
        self.op_settings = op_settings
        self.results: tuple[Tensor, ...] = ()

    def run(
        self, logits: Tensor, grad: Tensor | None, need: tuple[bool, bool]
    ) -> tuple[Tensor, ...]:
        """The op's results, with the gradients that are needed."""
        target, nearest, class_weight, input_scale = self.tensors
        self.results = torch.ops.margin_ext.average_margin_loss(
            logits,
            target,
            grad,
            nearest,
            class_weight,
            input_scale,
            *self.op_settings,
            _REDUCTIONS.index(self.settings.reduction),
            *need,
        )
        return self.results


def _forward(ctx: Any, logits: Tensor, grad: Tensor | None, call: _Call) -> tuple[Tensor, ...]:
    """Loss, margin, gap, norm and statistics, with what the backward needs in ctx.

    The finished gradients are stored, except in two cases that recompute them. Per-sample losses
    have an upstream gradient for each sample, which only the backward knows. Gradients in float16
    underflow without the loss scaler's factor, which comes with the backward.
    """
    half = torch.float16 in (logits.dtype, None if grad is None else grad.dtype)
    store = call.settings.reduction != "none" and not half
    need = ctx.needs_input_grad
    results = call.run(logits, grad, (store and need[0], store and need[1]))
    ctx.settings, ctx.tau, ctx.op_settings = call.settings, call.tau, call.op_settings
    ctx.stored = results[5:] if store else None
    ctx.save_for_backward(logits, grad, *call.tensors, results[4])
    ctx.set_materialize_grads(False)
    return results[:5]


def _backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None
    need = ctx.needs_input_grad[:2]
    stored = ctx.stored
    if torch.compiler.is_compiling() and stored is not None:
        # Nothing in place in a graph that the compiler may reorder; it fuses this itself.
        factor = upstream * ctx.saved_tensors[-1][_GRADIENT_SCALE]
        found = [(g * factor).to(g.dtype) if n else None for g, n in zip(stored, need, strict=True)]
        return tuple(found)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return tuple(_differentiable_gradients(ctx, upstream))
    if stored is not None:
        # The tensors are handed out, so a second backward (retain_graph) has to recompute.
        ctx.stored = None
        torch.ops.margin_ext.scale_gradients_(*stored, upstream, ctx.saved_tensors[-1])
        return stored[0] if need[0] else None, stored[1] if need[1] else None
    return tuple(_recomputed_gradients(ctx, upstream))


class _AverageMarginLoss(torch.autograd.Function):
    """The loss alone: autograd takes time for every input and output, so the rest is in call."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grad: Tensor | None, call: _Call) -> Tensor:
        return _forward(ctx, logits, grad, call)[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, upstream), None


class _TracedAverageMarginLoss(torch.autograd.Function):
    """All tensors as inputs and outputs, as a compiler wants to see them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        grad: Tensor | None,
        target: Tensor,
        nearest: Tensor | None,
        class_weight: Tensor | None,
        input_scale: Tensor | None,
        settings: LossSettings,
        tau: float | None,
        op_settings: _OpSettings,
    ) -> tuple[Tensor, ...]:
        call = _Call((target, nearest, class_weight, input_scale), settings, tau, op_settings)
        results = _forward(ctx, logits, grad, call)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, upstream), *(None,) * 7


def _called(logits: Tensor, grad: Tensor | None, call: _Call) -> tuple[Tensor, ...]:
    """Loss, margin, gap, norm and statistics."""
    with_graph = logits.requires_grad or (grad is not None and grad.requires_grad)
    if not (with_graph and torch.is_grad_enabled()):
        return call.run(logits, grad, (False, False))[:5]
    if torch.compiler.is_compiling():
        traced: tuple[Tensor, ...] = _TracedAverageMarginLoss.apply(  # type: ignore[no-untyped-call]
            logits, grad, *call.tensors, call.settings, call.tau, call.op_settings
        )
        return traced
    loss: Tensor = _AverageMarginLoss.apply(logits, grad, call)  # type: ignore[no-untyped-call]
    return loss, *call.results[1:5]


def _recomputed_gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    logits, grad, target, nearest, class_weight, input_scale, statistics = ctx.saved_tensors
    settings: LossSettings = ctx.settings
    if settings.reduction == "mean":
        batch = max(logits.shape[0], 1)
        upstream = upstream * (statistics[_GRADIENT_SCALE] / batch)
    gradients = torch.ops.margin_ext.average_margin_loss_backward(
        upstream.reshape(-1),
        logits,
        target,
        grad,
        nearest,
        class_weight,
        input_scale,
        *ctx.op_settings,
        *ctx.needs_input_grad[:2],
    )
    return [g if n else None for g, n in zip(gradients, ctx.needs_input_grad[:2], strict=True)]


def _differentiable_gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """Under create_graph: the reference, which is differentiable to any order."""
    logits, grad, target, nearest, class_weight, input_scale, _ = ctx.saved_tensors
    # Aliases, because the graph of grad may lead back to logits (if the backward of the last layer
    # reads its output, such as that of tanh). Partial derivatives must not follow that path.
    logits = logits.view_as(logits)
    grad = None if grad is None else grad.view_as(grad)
    std = None if input_scale is None else 1 / input_scale
    settings = replace(ctx.settings, weight=class_weight, input_std=std)
    loss = _reference_loss(logits, target, grad, nearest, settings, ctx.tau, validate=False).loss
    inputs = [logits, grad]
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:2]) if need]
    gradients = torch.autograd.grad(loss, [inputs[i] for i in wanted], upstream, create_graph=True)
    found: list[Tensor | None] = [None, None]
    for i, gradient in zip(wanted, gradients, strict=True):
        found[i] = gradient
    return found


def _reference_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None,
    nearest: Tensor | None,
    settings: LossSettings,
    tau: float | None,
    *,
    validate: bool,
) -> MarginLoss:
    if tau is None:
        return fallback.average_margin_loss(
            logits, target, grad, nearest=nearest, validate=validate, **settings.keywords()
        )
    assert grad is not None
    return fallback.additive_margin_loss(
        logits, target, grad, tau=tau, validate=validate, **settings.formula_keywords()
    )


def fused_loss(
    logits: Tensor,
    target: Tensor,
    grad: Tensor | None,
    nearest: Tensor | None,
    settings: LossSettings,
    validate: bool,
    tau: float | None = None,
) -> MarginLoss:
    """The loss for class labels [B], in one pass over the data.

    Without tau it is :func:`margin_ext.average_margin_loss`, with it
    :func:`margin_ext.functional.additive_margin_loss`.
    """
    if not compiled_for(logits):
        validate = validate or values_readable(logits)
        return _reference_loss(logits, target, grad, nearest, settings, tau, validate=validate)
    weight, std = settings.weight, settings.input_std
    check_same_device(
        "logits", logits, target=target, nearest=nearest, grad=grad, class_weight=weight
    )
    if validate:
        check_class_labels(logits, target, nearest, settings.ignore_index)
    if grad is not None:
        logits, grad = match_accumulation(logits, grad)
    dtype = accumulation_dtype(logits)
    op_settings = _op_settings(settings, tau, dtype, grad is not None)
    tensors = (
        target,
        nearest,
        None if weight is None else weight.to(dtype),
        None if std is None or grad is None else flat_channel_scale(std, grad),
    )
    try:
        call = _Call(tensors, settings, tau, op_settings)
        loss, margin, gap, norm, statistics = _called(logits, grad, call)
    except (TypeError, ValueError):
        refuse_nearest(logits, target, nearest, settings.ignore_index)
        raise
    return MarginLoss(loss, margin, gap, norm, BatchStatistics(statistics))
