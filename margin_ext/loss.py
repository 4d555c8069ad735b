"""The loss that a training loop uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from margin_ext.functional import MarginLoss, average_margin_loss, logit_gap
from margin_ext.input_gradient import (
    GRADIENT_MODES,
    check_inputs,
    critical_class,
    input_gradient,
)
from margin_ext.norms import dual_exponent
from margin_ext.reference.loss import REDUCTIONS
from margin_ext.regularizers import Regularizer, resolve_regularizer
from margin_ext.statistics import BatchStatistics

__all__ = ["AverageMarginLoss", "RunOutput"]


class RunOutput(NamedTuple):
    """What :meth:`AverageMarginLoss.run` returns.

    Attributes:
        loss: Scalar, or [B] for reduction "none"; call ``backward()`` on it.
        logits: [B, C], as the model returned them.
        margin: What the regularizer saw [B], without a graph.
        gap: Logit gap [B], without a graph.
        norm: Dual norm of the input gradient [B]; empty for margin="logit_gap".
        statistics: Minimum and average margin, accuracy and so on of the batch.
    """

    loss: Tensor
    logits: Tensor
    margin: Tensor
    gap: Tensor
    norm: Tensor
    statistics: BatchStatistics


class AverageMarginLoss(nn.Module):
    """Cross-entropy plus mu * phi(margin): trains the average margin (Wu and Yu 2019).

    With the first-order margin (the default)::

        criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0)
        inputs.requires_grad_()
        loss = criterion(model(inputs), target, inputs)
        loss.backward()

    or ``out = criterion.run(model, inputs, target); out.loss.backward()``. With
    ``margin="logit_gap"`` it is the authors' loss, and no inputs are needed.

    After each call ``criterion.statistics`` holds the minimum and average margin, the average gap
    and gradient norm and the accuracy of the batch, on the device.

    Args:
        p: Threat norm that margins are measured in: 1, 2, "inf" or any real number above 1.
        mu: Weight of the regularizer.
        tau: How far margins are pushed, in the unit of the margin (see ``regularizer``).
        regularizer: "ramp", clamp(tau - t, 0, tau), lifts margins of correctly classified samples
            up to tau; "authors_code", clamp(-t, 0, tau), is what the authors' code computes;
            "hinge", "linear", "softplus", "exponential"; or a :class:`Regularizer`.
        margin: "first_order" (distance to the boundary) or "logit_gap" (the authors').
        gradient: How the norm of the input gradient is differentiated: "double_backward" (exact)
            or "detached" (the norm is a constant: cheaper, and weaker).
        classes: Which classes the margin is taken over: "runner_up" (one gradient pass), k (the k
            largest other logits: k passes more) or "all".
        eps: Floor of the gradient norm; under it the norm has no gradient.
        weight: Class weights [C]; they weight the whole loss of a sample.
        ignore_index: Samples with this label do not count.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``; of the cross-entropy only.
        reduction: "mean", "sum" or "none".
        input_std: The standard deviation(s) by which the loader divides, a number or one a
            channel: p, tau and margins are then in pixel units.
        validate: Check labels on CUDA too, at the price of a synchronisation. Without it a bad
            label makes the loss NaN there. On CPU labels are always checked.
    """

    weight: Tensor | None
    input_std: Tensor | None

    def __init__(
        self,
        p: float | str = 2,
        mu: float = 1.0,
        tau: float = 3.0,
        *,
        regularizer: str | Regularizer = "ramp",
        margin: str = "first_order",
        gradient: str = "double_backward",
        classes: str | int = "runner_up",
        eps: float = 1e-6,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        input_std: float | Sequence[float] | Tensor | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__()
        dual_exponent(p)
        _one_of("margin", margin, ("first_order", "logit_gap"))
        _one_of("gradient", gradient, GRADIENT_MODES)
        _one_of("reduction", reduction, REDUCTIONS)
        if not (classes in ("runner_up", "all") or (isinstance(classes, int) and classes >= 1)):
            raise ValueError(
                f'classes must be "runner_up", "all" or a number >= 1, got {classes!r}'
            )
        if not mu >= 0:
            raise ValueError(f"mu must be at least 0, got {mu}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
        self.p = p
        self.mu = float(mu)
        self.tau = float(tau)
        self.regularizer = resolve_regularizer(regularizer, tau)
        self.margin = margin
        self.gradient = gradient
        self.classes = classes
        self.eps = float(eps)
        self.ignore_index = ignore_index
        self.label_smoothing = float(label_smoothing)
        self.reduction = reduction
        self.validate = validate
        self.register_buffer("weight", weight)
        std = None if input_std is None else torch.as_tensor(input_std, dtype=torch.float64)
        if std is not None and (std.dim() > 1 or not bool((std > 0).all())):
            raise ValueError(
                f"input_std must be a number or [channels], above 0, got {input_std!r}"
            )
        self.register_buffer("input_std", std, persistent=False)
        self.statistics: BatchStatistics | None = None

    def forward(self, logits: Tensor, target: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, C].
            target: int64 [B].
            inputs: [B, ...], the tensor that the model was called with, requiring grad; not
                needed for margin="logit_gap".

        Returns:
            Scalar, or [B] for reduction "none".
        """
        return self._loss(logits, target, inputs).loss

    def run(self, model: nn.Module, inputs: Tensor, target: Tensor) -> RunOutput:
        """Run the model on a batch and compute the loss; ``inputs`` are not modified.

        Args:
            model: Maps inputs to logits [B, C].
            inputs: [B, ...].
            target: int64 [B].
        """
        if self.margin == "first_order":
            inputs = inputs.detach().requires_grad_()
        logits = model(inputs)
        out = self._loss(logits, target, inputs)
        return RunOutput(out.loss, logits, out.margin, out.gap, out.norm, out.statistics)

    def _loss(self, logits: Tensor, target: Tensor, inputs: Tensor | None) -> MarginLoss:
        grad = critical = None
        if self.margin == "first_order":
            grad, critical = self._input_gradient(logits, target, inputs)
        out = average_margin_loss(
            logits,
            target,
            grad,
            regularizer=self.regularizer,
            mu=self.mu,
            p=self.p,
            eps=self.eps,
            critical=critical,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            input_std=self.input_std,
            validate=self.validate,
        )
        self.statistics = out.statistics
        return out

    def _input_gradient(
        self, logits: Tensor, target: Tensor, inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of each gap, and its class where that is not the runner-up."""
        inputs = check_inputs(logits, inputs)
        if self.classes == "runner_up":
            critical = logit_gap(logits.detach(), target, ignore_index=self.ignore_index).runner_up
        else:
            critical = critical_class(
                logits,
                inputs,
                target,
                classes=self.classes,
                p=self.p,
                eps=self.eps,
                input_std=self.input_std,
                ignore_index=self.ignore_index,
            )
        grad = input_gradient(
            logits, inputs, target, critical, create_graph=self.gradient == "double_backward"
        )
        return grad, None if self.classes == "runner_up" else critical

    def extra_repr(self) -> str:
        """The settings, as they would be written."""
        shown: dict[str, object] = {
            "p": self.p,
            "mu": self.mu,
            "tau": self.tau,
            "regularizer": f"{self.regularizer.kind}[{self.regularizer.lo:g}, "
            f"{self.regularizer.hi:g}]",
            "margin": self.margin,
            "gradient": self.gradient,
            "classes": self.classes,
            "reduction": self.reduction,
        }
        if self.label_smoothing:
            shown["label_smoothing"] = self.label_smoothing
        if self.input_std is not None:
            shown["input_std"] = self.input_std.tolist()
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
