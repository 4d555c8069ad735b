"""The loss that a training loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.functional import MarginLoss
from margin_ext.gradient_modes import (
    FiniteDifference,
    GradientCheck,
    Mode,
    Objective,
    Passes,
    SampleObjective,
    Secant,
    Step,
    check_gradient,
    joined_call,
    layered_loss,
    make_mode,
    run_step,
    secant_loss,
)
from margin_ext.gradient_modes.parallel import refuse_static_graph_behind
from margin_ext.input_gradient import check_inputs
from margin_ext.input_std import checked_std
from margin_ext.loss_settings import check_settings
from margin_ext.regularizers import Regularizer, resolve_regularizer
from margin_ext.run_output import RunOutput
from margin_ext.statistics import BatchStatistics, without_margins

__all__ = ["AverageMarginLoss", "RunOutput"]


class AverageMarginLoss(nn.Module):
    """Cross-entropy plus mu * phi(margin): trains the average margin (Wu and Yu 2019).

    With the first-order margin (the default)::

        criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0)
        inputs.requires_grad_()
        loss = criterion(model(inputs), target, inputs)
        loss.backward()

    or ``out = criterion.run(model, inputs, target); out.loss.backward()``. With
    ``margin="logit_gap"`` it is the authors' loss, and no inputs are needed.

    The target is int64 [B]; for dense logits [B, C, d1, ...] int64 [B, d1, ...]; and in place of
    classes there may be probabilities, floating and of the shape of the logits (mixup,
    distillation). What the margin is then is written in docs/labels.md.

    After each call ``criterion.statistics`` holds the minimum and average margin, the average gap
    and gradient norm and the accuracy of the batch, on the device.

    Args:
        p: Threat norm that margins are measured in: 1, 2, "inf" or any real number above 1.
        mu: Weight of the regularizer.
        tau: How far margins are pushed, in the unit of the margin (see ``regularizer``).
        regularizer: "ramp", clamp(tau - t, 0, tau), lifts margins of correctly classified samples
            up to tau; "authors_code", clamp(-t, 0, tau), is what the authors' code computes;
            "hinge", "linear", "softplus", "exponential"; or a :class:`Regularizer`.
        margin: "first_order" (distance to the boundary of the tangent), "secant" (along the way to
            the point that a short attack finds: needs no second derivatives, ``run`` only, and
            ``gradient`` and ``classes`` beyond the first gap play no part) or "logit_gap" (the
            authors').
        gradient: How the norm of the input gradient is differentiated: "double_backward" (exact;
            the model must be twice differentiable), "finite_difference" (one or two passes more
            and no second derivatives; with ``run`` only), "detached" (the norm is a constant:
            cheapest, and weaker) or "auto" (double_backward, and where ``run`` finds that the
            model lacks it, finite_difference, with a warning).
        difference: How finite differences step.
        secant: How the attack of margin="secant" goes.
        classes: Which classes the margin is taken over: "runner_up" (one gradient pass), k (the k
            largest other logits: k passes more) or "all".
        eps: Floor of the gradient norm; under it the norm has no gradient.
        weight: Class weights [C]; they weight the whole loss of a sample.
        ignore_index: Samples (positions) with this label do not count; for class labels.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``; of the cross-entropy only.
        reduction: "mean", "sum" or "none".
        positions: What the gap of a sample of dense logits is of its positions' gaps: their
            "mean", weighted as the cross-entropy is, or the "worst", which is the smallest.
        input_std: The standard deviation(s) by which the loader divides, a number or one a
            channel: p, tau and margins are then in pixel units.
        fraction: Of every batch, the share whose margins are taken, chosen at random and run by
            itself (with ``run`` only).
        every: Take margins in every so many training steps (calls of ``run``) only, with mu times
            as much weight; in between the loss is the cross-entropy. ``criterion.steps``
            counts them; a continued training sets it.
        warmup: Training steps in which mu rises evenly from near 0, for settings under which a
            network that knows nothing yet would not begin to learn.
        batchnorm: What BatchNorm in training normalises by where margins are concerned: "batch",
            as everywhere in training, or "running", as in the finished network (a pass of its
            own; with ``run`` only).
        validate: Check labels on CUDA too, and synchronise; on CPU they always are. A bad label
            else makes the loss NaN there, or stops the program in torch's kernels (docs/labels.md).
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
        positions: str = "mean",
        input_std: float | Sequence[float] | Tensor | None = None,
        difference: FiniteDifference | None = None,
        secant: Secant | None = None,
        fraction: float = 1.0,
        every: int = 1,
        warmup: int = 0,
        batchnorm: str = "batch",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_settings(
            p=p,
            mu=mu,
            margin=margin,
            gradient=gradient,
            classes=classes,
            eps=eps,
            label_smoothing=label_smoothing,
            reduction=reduction,
            positions=positions,
            fraction=fraction,
            every=every,
            warmup=warmup,
            batchnorm=batchnorm,
        )
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
        self.positions = positions
        self.validate = validate
        self.register_buffer("weight", weight)
        self.register_buffer("input_std", checked_std(input_std), persistent=False)
        self.difference = FiniteDifference() if difference is None else difference
        self.secant = Secant() if secant is None else secant
        self.fraction = float(fraction)
        self.every = every
        self.warmup = warmup
        self.batchnorm = batchnorm
        self._mode: Mode
        if margin == "secant":
            self.secant.check_tau(self.tau)
            self._mode = partial(secant_loss, settings=self.secant)
        else:
            if margin == "first_order" and gradient in ("finite_difference", "auto"):
                self.difference.check_tau(self.tau)
            self._mode = make_mode(gradient, self.difference)
        self.steps = 0
        self.statistics: BatchStatistics | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AverageMarginLoss:
        # .half() and .to(dtype) are meant for models: a rounded std would change every margin.
        std = self.input_std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if std is not None and self.input_std is not None:
            self.input_std = std.to(self.input_std.device)
        return self

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        inputs: Tensor | Sequence[Tensor] | None = None,
        *,
        layer_weights: Sequence[float] | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, by double backward or with the norm detached.

        Args:
            logits: [B, C] or [B, C, d1, ...].
            target: int64 [B] or [B, d1, ...], or probabilities of the shape of logits.
            inputs: [B, ...], the tensor that the model was called with, requiring grad; not
                needed for margin="logit_gap". A list of tensors on the way to the logits, such as
                hidden activations, each [B, ...], has one regularizer each; statistics are then
                those of the first.
            layer_weights: What each regularizer of such a list is multiplied by; by default
                1 / the length of the list.
            normalizer: As in :meth:`run`.

        Returns:
            Scalar; for reduction "none" [B], or [B, d1, ...].
        """
        _, mu = self._next_step()
        objective = self._objective(target, normalizer, mu)
        if self.margin == "logit_gap":
            out = objective.loss(logits, target, None, None)
        else:
            refuse_static_graph_behind(logits)
            if inputs is None or isinstance(inputs, Tensor):
                inputs = check_inputs(logits, inputs)
                out = self._mode(Step(objective, inputs, logits, target))
            else:
                out = layered_loss(objective, self._mode, logits, target, inputs, layer_weights)
        self.statistics = out.statistics
        return out.loss

    def run(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        target: Tensor,
        *,
        call: Callable[[Any, Tensor], Tensor] | None = None,
        logits_fn: Callable[[Any], Tensor] | None = None,
        normalizer: float | Tensor | None = None,
    ) -> RunOutput:
        """Run the model on a batch and compute the loss; ``inputs`` are not modified.

        Args:
            model: Maps inputs to logits [B, C] or [B, C, d1, ...]. A module (also wrapped by
                torch.compile, DistributedDataParallel or fully_shard), or a function, whose
                BatchNorm layers and second device, if any, are not seen then.
            inputs: [B, ...].
            target: As in :meth:`forward`.
            call: Maps the model and inputs to what the model returns, for models that take more
                than the inputs: ``lambda model, x: model(x, mask)``. The model that it is given
                may be the one inside a wrapper.
            logits_fn: Takes the logits out of what the model returns.
            normalizer: Divides the sum over the samples, in place of ``reduction``. For gradient
                accumulation: the number of samples (their summed class weights) of all the
                batches of a step. DistributedDataParallel averages over its ranks on top.

        Raises:
            RuntimeError: The model is in DistributedDataParallel(static_graph=True), or the mode
                needs what the model cannot do.
            ValueError: Settings or shapes do not fit.
        """
        passes = self._passes(model, call, logits_fn)
        turn, mu = self._next_step()
        if self.margin == "logit_gap":
            logits = passes.call(model, inputs)
            out = self._objective(target, normalizer, mu).loss(logits, target, None, None)
        elif not turn:
            logits = passes.call(model, inputs)
            plain = self._objective(target, normalizer, 0.0).plain(logits, target)
            out = _without_margins(plain)
        else:
            if call is not None and self.fraction < 1:
                raise ValueError(
                    "fraction < 1 runs the model on a part of the batch, which call= would not "
                    "know of: leave one of them out"
                )
            if self.training:
                mu *= self.every
            objective = self._objective(target, normalizer, mu)
            logits, out = run_step(passes, objective, self._mode, inputs, target)
        self.statistics = out.statistics
        return RunOutput(out.loss, logits, out.margin, out.gap, out.norm, out.statistics)

    def check(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        *,
        call: Callable[[Any, Tensor], Tensor] | None = None,
        logits_fn: Callable[[Any], Tensor] | None = None,
        directions: int = 8,
        seed: int = 0,
    ) -> GradientCheck:
        """Compare this mode's parameter gradient with numeric derivatives, and say what is wrong.

        The judge is the value of the loss on a float64 copy of the model, along random directions
        of its parameters. The model, its ``grad``, buffers and mode are left as they are. Under
        DistributedDataParallel every rank has to call it.

        Args:
            model: As in :meth:`run`, but a module.
            inputs: [B, ...]; a few samples are enough.
            target: As in :meth:`forward`.
            call: As in :meth:`run`.
            logits_fn: As in :meth:`run`.
            directions: How many; each takes two passes forward and backward.
            seed: Of the directions, and of the model's own randomness during the check.

        Raises:
            TypeError, ValueError: The model is a function, or split by fully_shard; shapes do not
                fit; margin="logit_gap" has no input gradient to check.
        """
        if self.margin != "first_order":
            raise ValueError(
                'check() judges the gradient of the norm in margin="first_order"; '
                f'margin="{self.margin}" has none'
            )
        return check_gradient(
            self._passes(model, call, logits_fn),
            self._objective(target, None, self.mu),
            self._mode,
            self.gradient,
            self.difference,
            inputs,
            target,
            directions=directions,
            seed=seed,
        )

    def _passes(
        self,
        model: Callable[..., Any],
        call: Callable[[Any, Tensor], Tensor] | None,
        logits_fn: Callable[[Any], Tensor] | None,
    ) -> Passes:
        differences = self.gradient in ("finite_difference", "auto")
        reruns = differences or self.margin == "secant"
        # What call= closes over may be something else by the time of the backward.
        deferred = (
            differences and self.margin != "secant" and self.difference.deferred and call is None
        )
        return Passes(
            model,
            joined_call(call, logits_fn),
            self.batchnorm,
            self.fraction,
            reruns=reruns,
            deferred=self.difference.passes if deferred else 0,
        )

    def _objective(self, target: Tensor, normalizer: float | Tensor | None, mu: float) -> Objective:
        kind: Callable[..., Objective] = Objective
        if target.dim() != 1:
            kind = partial(SampleObjective, positions=self.positions)
        return kind(
            regularizer=self.regularizer,
            mu=mu,
            tau=self.tau,
            p=self.p,
            eps=self.eps,
            classes=self.classes,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            input_std=self.input_std,
            validate=self.validate,
            normalizer=normalizer,
        )

    def _next_step(self) -> tuple[bool, float]:
        """Whether ``every`` lets margins into this step, and its mu."""
        if not self.training:
            return True, self.mu
        begun = self.steps
        self.steps += 1
        rise = 1.0 if begun >= self.warmup else (begun + 1) / (self.warmup + 1)
        return begun % self.every == 0, self.mu * rise

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
        if self.margin == "secant":
            shown["secant"] = self.secant
        elif self.gradient in ("finite_difference", "auto"):
            shown["difference"] = self.difference
        for name, usual in (("positions", "mean"), ("fraction", 1.0), ("every", 1), ("warmup", 0)):
            if getattr(self, name) != usual:
                shown[name] = getattr(self, name)
        if self.label_smoothing:
            shown["label_smoothing"] = self.label_smoothing
        if self.input_std is not None:
            shown["input_std"] = self.input_std.tolist()
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _without_margins(out: MarginLoss) -> MarginLoss:
    missing = torch.full_like(out.gap, math.nan)
    return out._replace(margin=missing, norm=missing, statistics=without_margins(out.statistics))
