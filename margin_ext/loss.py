"""The loss that a training loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import torch
from torch import Tensor, nn

from margin_ext.gradient_modes import GradientCheck, Step
from margin_ext.gradient_modes.gradient_check import check_gradient
from margin_ext.gradient_modes.hidden_layers import layered_loss
from margin_ext.gradient_modes.margin_pass import Passes, run_step
from margin_ext.gradient_modes.model_call import joined_call
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.parallel import refuse_static_graph_behind
from margin_ext.input_gradient import check_inputs
from margin_ext.input_std import checked_std
from margin_ext.loss_options import LossOptions
from margin_ext.loss_settings import refuse_renamed, shows_fields_of
from margin_ext.op_results import MarginLoss
from margin_ext.run_output import RunOutput
from margin_ext.statistics import BatchStatistics, without_margins

__all__ = ["AverageMarginLoss", "RunOutput"]

_Options = ParamSpec("_Options")


def _takes(
    options: Callable[_Options, LossOptions],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _Options], None]]:
    """Give a constructor the parameters of the options, for type checkers, editors and help()."""
    return shows_fields_of(options)  # type: ignore[arg-type]


class AverageMarginLoss(nn.Module):
    """Cross-entropy plus mu * phi(margin): trains the average margin (arXiv 1907.11780).

    With the first-order margin (the default)::

        criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0)
        inputs.requires_grad_()
        loss = criterion(model(inputs), target, inputs)
        loss.backward()

    or ``out = criterion.run(model, inputs, target); out.loss.backward()``. With
    ``margin="logit_gap"`` it is the authors' loss, and no inputs are needed.

    The target is int64 [B]; for dense logits [B, C, d1, ...] int64 [B, d1, ...]; and in place of
    classes there may be probabilities, floating and of the shape of the logits (mixup,
    distillation). docs/labels.md says what the margin is then.

    After each call ``criterion.statistics`` holds the minimum and average margin, the average gap
    and gradient norm and the accuracy of the batch, on the device.

    Args:
        **options: The fields of :class:`margin_ext.LossOptions`, which describes each; p, mu and
            tau may be positional. All can be read and changed as attributes afterwards
            (``criterion.tau = 1.0``), with the same checks; ``criterion.options`` holds them.

    Raises:
        ValueError: An option is out of its range, or has no effect with the others.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(5, 3), torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
        >>> criterion = AverageMarginLoss(p="inf", tau=0.1)
        >>> out = criterion.run(model, x, y)
        >>> out.loss.backward()
        >>> out.margin.shape
        torch.Size([4])
    """

    weight: Tensor | None

    @_takes(LossOptions)
    def __init__(self, *positional: Any, **options: Any) -> None:
        refuse_renamed(options)
        super().__init__()
        self.register_buffer("weight", None)
        self.options = LossOptions(*positional, **options)
        self.steps = 0
        self.statistics: BatchStatistics | None = None

    if TYPE_CHECKING:  # the attributes are made below, one for each field of LossOptions

        def __getattr__(self, name: str) -> Any: ...

    @property
    def options(self) -> LossOptions:
        """All options; another LossOptions can be put in their place."""
        return replace(self._options, weight=self.weight)

    @options.setter
    def options(self, options: LossOptions) -> None:
        std = checked_std(options.input_std)
        # The class weights are state: they are saved, and move with the criterion.
        self.weight = options.weight
        self._options = replace(options, weight=None, input_std=std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AverageMarginLoss:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        std = self._options.input_std
        if isinstance(std, Tensor):
            # .half() and .to(dtype) are meant for models: a rounded std would change every margin.
            self._options = replace(self._options, input_std=std.to(fn(std).device))
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
            layer_weights: The factor of each regularizer of such a list; by default
                1 / the length of the list.
            normalizer: As in :meth:`run`.

        Returns:
            Scalar; for reduction "none" [B], or [B, d1, ...].

        Raises:
            ValueError: Shapes do not fit, or an option needs :meth:`run`.
        """
        self._refuse_options_of_run()
        _, mu = self._next_step()
        objective, mode = self._objective(normalizer, mu), self._options.mode
        if mode is None:
            out = objective.loss(logits, objective.labels(logits, target), None, None)
        else:
            refuse_static_graph_behind(logits)
            if inputs is None or isinstance(inputs, Tensor):
                inputs = check_inputs(logits, inputs)
                out = mode(Step(objective, inputs, logits, objective.labels(logits, target)))
            else:
                out = layered_loss(objective, mode, logits, target, inputs, layer_weights)
        self.statistics = out.statistics
        return out.loss

    def _refuse_options_of_run(self) -> None:
        o = self._options
        for name, value, usual in (
            ("fraction", o.fraction, 1.0),
            ("every", o.every, 1),
            ("batchnorm", o.batchnorm, "batch"),
        ):
            if value != usual:
                raise ValueError(
                    f"{name}={value!r} decides which passes are made: call criterion.run(model, "
                    "inputs, target) in place of criterion(logits, target, inputs)"
                )

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
        mode = self._options.mode
        if mode is None or not turn:
            objective = self._objective(normalizer, mu)
            logits = passes.first(inputs)
            labels = objective.labels(logits, target)
            if mode is None:
                out = objective.loss(logits, labels, None, None)
            else:
                out = _without_margins(objective.plain(logits, labels))
        else:
            if call is not None and self._options.fraction < 1:
                raise ValueError(
                    "fraction < 1 runs the model on a part of the batch, which call= would not "
                    "know of: leave one of them out"
                )
            if self.training:
                mu *= self._options.every
            logits, out = run_step(passes, self._objective(normalizer, mu), mode, inputs, target)
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

        The comparison is with the value of the loss on a float64 copy of the model, along random
        directions of its parameters. The model, its ``grad``, buffers and mode are left as they
        are. Under DistributedDataParallel every rank has to call it.

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
        mode = self._options.mode
        if mode is None or self._options.margin != "first_order":
            raise ValueError(
                'check() judges the gradient of the norm in margin="first_order"; '
                f'margin="{self._options.margin}" has none'
            )
        return check_gradient(
            self._passes(model, call, logits_fn),
            self._objective(None, self._options.mu),
            mode,
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
        o = self._options
        logits = joined_call(call, logits_fn)
        if o.mode is None:
            return Passes(model, logits, o.batchnorm, o.fraction)
        # What call= closes over may be something else by the time of the backward.
        deferred = o.mode.deferred and call is None
        return Passes(model, logits, o.batchnorm, o.fraction, o.mode.reruns, deferred)

    def _objective(self, normalizer: float | Tensor | None, mu: float) -> Objective:
        o = self._options
        reduction = o.reduction if normalizer is None else "sum"
        return Objective(replace(o, mu=mu, weight=self.weight, reduction=reduction), normalizer)

    def _next_step(self) -> tuple[bool, float]:
        """Whether ``every`` lets margins into this step, and its mu."""
        o = self._options
        if not self.training:
            return True, o.mu
        begun = self.steps
        self.steps += 1
        rise = 1.0 if begun >= o.warmup else (begun + 1) / (o.warmup + 1)
        return begun % o.every == 0, o.mu * rise

    def extra_repr(self) -> str:
        """The options, as they would be written."""
        o = self._options
        always = ("p", "mu", "tau", "regularizer", "margin", "gradient", "classes", "reduction")
        shown = {name: getattr(o, name) for name in always}
        for field in fields(o):
            value = getattr(o, field.name)
            if (
                field.name not in always
                and not isinstance(value, Tensor)
                and value != field.default
            ):
                shown[field.name] = value
        if isinstance(o.input_std, Tensor):
            shown["input_std"] = o.input_std.tolist()
        shown["regularizer"] = o.phi
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class _Option:
    """An attribute of the criterion that is one of its options: a change is checked and whole."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, criterion: AverageMarginLoss | None, owner: type) -> Any:
        return self if criterion is None else getattr(criterion._options, self.name)

    def __set__(self, criterion: AverageMarginLoss, value: Any) -> None:
        criterion.options = replace(criterion.options, **{self.name: value})


for _field in fields(LossOptions):
    if _field.name != "weight":  # a buffer
        setattr(AverageMarginLoss, _field.name, _Option(_field.name))


def _without_margins(out: MarginLoss) -> MarginLoss:
    missing = torch.full_like(out.gap, math.nan)
    return out._replace(margin=missing, norm=missing, statistics=without_margins(out.statistics))
