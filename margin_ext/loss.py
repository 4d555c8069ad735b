"""The loss that a training loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from margin_ext.checks import check_normalizer, check_weight_values
from margin_ext.gradient_modes import Detached, GradientCheck, Step
from margin_ext.gradient_modes.domain import refuse_nan_inputs
from margin_ext.gradient_modes.gradient_check import Subject, check_gradient
from margin_ext.gradient_modes.hidden_layers import layered_loss
from margin_ext.gradient_modes.margin_pass import Passes, run_step
from margin_ext.gradient_modes.model_call import ModelCall, PassOutput, require_logits
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.parallel import refuse_fsdp1_behind, refuse_static_graph_behind
from margin_ext.input_gradient import check_inputs
from margin_ext.input_std import checked_std
from margin_ext.loss_options import LossOptions
from margin_ext.loss_settings import refuse_renamed
from margin_ext.movable_inputs import require_movable
from margin_ext.op_results import MarginLoss
from margin_ext.option_attributes import add_option_attributes, takes_options
from margin_ext.run_output import RunOutput
from margin_ext.statistics import BatchStatistics, without_margins
from margin_ext.suggestion import suggestion
from margin_ext.target_kinds import two_class_logits
from margin_ext.training_steps import StepCounter, rise

__all__ = ["AverageMarginLoss", "RunOutput"]

_OPTIONS = tuple(field.name for field in fields(LossOptions))


class AverageMarginLoss(nn.Module):
    """Cross-entropy plus mu * phi(margin): trains the average margin (arXiv 1907.11780).

    With the first-order margin (the default)::

        criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0)
        inputs.requires_grad_()
        loss = criterion(model(inputs), target, inputs)
        loss.backward()

    or ``out = criterion.run(model, inputs, target); out.loss.backward()``. With
    ``margin="logit_gap"`` it is the authors' loss, and no inputs are needed.

    The target is int64 [B], or int64 [B, d1, ...] for dense logits [B, C, d1, ...]. It may also
    hold probabilities (mixup, distillation), as a floating tensor of the shape of the logits.
    docs/labels.md defines the margin for each of them.

    After each call ``criterion.statistics`` holds the batch's margins and accuracy, on the device.

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

    @takes_options(LossOptions)
    def __init__(self, *positional: Any, **options: Any) -> None:
        refuse_renamed(options)
        for name in options:
            if name not in _OPTIONS:
                hint = (
                    suggestion(name, _OPTIONS, cutoff=0.5) or f"; known are {', '.join(_OPTIONS)}"
                )
                raise TypeError(f"AverageMarginLoss has no option {name!r}{hint}")
        super().__init__()
        self.register_buffer("weight", None)
        self.options = LossOptions(*positional, **options)
        self._counter = StepCounter()
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
        if options.weight is not None and options.weight is not self.weight:
            check_weight_values(options.weight)
        # The class weights are state: they are saved, and move with the criterion.
        self.weight = options.weight
        self._options = replace(options, weight=None, input_std=std)

    @property
    def steps(self) -> int:
        """How many training steps have begun; a continued training sets it."""
        return self._counter.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._counter.steps = steps

    def one_step(self) -> AbstractContextManager[None]:
        """Count all calls inside as one training step, for ``every`` and ``warmup``.

        It is for loops with several calls a step and no optimizer of torch. With such an optimizer
        all calls up to its next ``step()``, or inside ``step(closure)``, count as one step anyway.

        Example:
            >>> criterion, model = AverageMarginLoss(every=2), nn.Linear(5, 3)
            >>> x, y = torch.ones(2, 5), torch.tensor([0, 1])
            >>> with criterion.one_step():
            ...     for _ in range(2):  # such as the two of sharpness-aware minimisation
            ...         criterion.run(model, x, y).loss.backward()
            >>> criterion.steps
            1
        """
        return self._counter.one_step()

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_renamed({name: value})
        # Attributes of your own are welcome, unless they look like an option's.
        own = not name.startswith("_") and not hasattr(self, name)
        if own and (hint := suggestion(name, _OPTIONS)):
            raise AttributeError(f"AverageMarginLoss has no option {name!r}{hint}")
        super().__setattr__(name, value)

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
                needed for margin="logit_gap". Or a list of tensors on the way to the logits, such
                as hidden activations, each [B, ...]: every tensor gets its own regularizer, and the
                statistics are those of the first.
            layer_weights: The factor of each regularizer of such a list; by default
                1 / the length of the list.
            normalizer: As in :meth:`run`.

        Returns:
            A scalar, or for reduction "none" [B] or [B, d1, ...]. Where no input gradient can be
            taken (under no_grad and inference_mode, and in eval mode if the logits or inputs have
            no graph) it is the cross-entropy alone, and the statistics have NaN for the margins.
            :meth:`run` returns the whole loss there too.

        Raises:
            ValueError: Shapes do not fit, or an option needs :meth:`run`.
            TypeError: Logits or target are of another kind.
        """
        normalizer = check_normalizer(normalizer)
        logits = two_class_logits(require_logits(logits))
        mode = self._options.mode
        if mode is None or self._has_no_margins(logits, inputs):
            out = self._without_inputs(logits, target, normalizer)
        else:
            self._refuse_options_of_run()
            refuse_static_graph_behind(logits)
            refuse_fsdp1_behind(logits)
            objective = self._objective(normalizer, self._next_step()[1])
            if isinstance(inputs, (list, tuple)):
                out = layered_loss(objective, mode, logits, target, inputs, layer_weights)
            else:
                inputs = check_inputs(logits, inputs)
                out = mode(Step(objective, inputs, logits, objective.labels(logits, target)))
        if isinstance(inputs, Tensor):
            refuse_nan_inputs(inputs, out.loss, validate=self._options.validate)
        self.statistics = out.statistics.of(out.margin)
        return out.loss

    def _has_no_margins(self, logits: Tensor, inputs: Tensor | Sequence[Tensor] | None) -> bool:
        """Whether this is a validation in which no input gradient can be taken."""
        if not torch.is_grad_enabled():
            return True
        layers = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        can = logits.requires_grad and all(getattr(x, "requires_grad", False) for x in layers)
        return not self.training and not can

    def _refuse_options_of_run(self) -> None:
        o = self._options
        for name, value, usual in (
            ("fraction", o.fraction, 1.0),
            ("every", o.every, 1),
            ("batchnorm", o.batchnorm, "batch"),
            ("noise", getattr(o.mode, "noise", 0.0) if self.training else 0.0, 0.0),
        ):
            if value != usual:
                of = f" of {type(o.mode).__name__}" if name == "noise" else ""
                raise ValueError(
                    f"{name}={value!r}{of} decides which passes are made: call criterion.run("
                    "model, inputs, target) in place of criterion(logits, target, inputs)"
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
                torch.compile, DistributedDataParallel or fully_shard), or a function; the
                modules that it holds or names are found.
            inputs: [B, ...].
            target: As in :meth:`forward`.
            call: Maps the model and inputs to what the model returns, for models that take more
                than the inputs: ``lambda model, x: model(x, mask)``. The model that it is given
                may be the one inside a wrapper.
            logits_fn: Takes the logits out of what the model returns.
            normalizer: Divides the sum over the samples, in place of ``reduction``. For gradient
                accumulation, give the number of samples (or the sum of their class weights) in all
                batches of the step. DistributedDataParallel still averages over its ranks. It must
                be above 0; a tensor on a GPU is not checked, and gives a NaN loss otherwise.

        Raises:
            RuntimeError: The model is in DistributedDataParallel(static_graph=True), or the mode
                needs what the model cannot do.
            ValueError: Settings or shapes do not fit.

        Example:
            >>> criterion, model = AverageMarginLoss(tau=0.5), nn.Linear(5, 3)
            >>> out = criterion.run(model, torch.ones(2, 5), torch.tensor([0, 1]))
            >>> out.logits.shape, out.norm.shape
            (torch.Size([2, 3]), torch.Size([2]))
        """
        normalizer = check_normalizer(normalizer)
        if not torch.is_grad_enabled():
            return self._validated(model, inputs, target, ModelCall(call, logits_fn), normalizer)
        passes = self._passes(model, ModelCall(call, logits_fn))
        turn, mu = self._next_step()
        mode = self._options.mode
        if mode is None or not turn:
            if mode is not None:
                require_movable(inputs)
            passed = passes.whole(inputs)
            out = self._without_inputs(passed.class_logits, target, normalizer, mu)
        else:
            if call is not None and self._options.fraction < 1:
                raise ValueError(
                    "fraction < 1 runs the model on a part of the batch, which call= would not "
                    "know of: leave one of them out"
                )
            if self.training:
                mu *= self._options.every
            mode = mode if self.training else mode.without_noise()
            inputs = mode.start(inputs, self._options)
            passed, out = run_step(passes, self._objective(normalizer, mu), mode, inputs, target)
        return self._output(passed, out, inputs)

    def _validated(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        target: Tensor,
        call: ModelCall,
        normalizer: float | Tensor | None,
    ) -> RunOutput:
        """The value of the loss under no_grad or inference_mode, without a graph."""
        o = self._options
        if o.mode is None:
            passed = call.output(model, inputs)
            out = self._without_inputs(passed.class_logits, target, normalizer)
            return self._output(passed, out, inputs)
        # All gradient modes have the same value; this one costs least.
        mode = Detached() if o.margin == "first_order" else o.mode.without_noise()
        passes = Passes(model, call, o.batchnorm, reruns=mode.reruns)
        # Autograd takes no tensors of the inference mode, and needs a graph for a moment.
        with torch.inference_mode(False), torch.enable_grad():
            inputs, target = (t.clone() if t.is_inference() else t for t in (inputs, target))
            passed, out = run_step(passes, self._objective(normalizer, o.mu), mode, inputs, target)
        passed = tree_map_only(Tensor, Tensor.detach, passed)
        return self._output(passed, out._replace(loss=out.loss.detach()), inputs)

    def _without_inputs(
        self,
        logits: Tensor,
        target: Tensor,
        normalizer: float | Tensor | None,
        mu: float | None = None,
    ) -> MarginLoss:
        """The loss of logit gaps; for other margins, which need inputs, the cross-entropy alone."""
        if mu is None:
            mu = self._next_step()[1]
        objective = self._objective(normalizer, mu)
        labels = objective.labels(logits, target)
        if self._options.mode is None:
            return objective.loss(logits, labels, None, None)
        out = objective.plain(logits, labels)
        missing = torch.full_like(out.gap, math.nan)
        statistics = without_margins(out.statistics)
        return out._replace(margin=missing, norm=missing, statistics=statistics)

    def _output(self, passed: PassOutput, out: MarginLoss, inputs: Tensor) -> RunOutput:
        refuse_nan_inputs(inputs, out.loss, validate=self._options.validate)
        self.statistics = out.statistics.of(out.margin)
        return RunOutput(
            out.loss, passed.logits, out.margin, out.gap, out.norm, self.statistics, passed.whole
        )

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
            seed: Seeds the directions, and the model's own randomness during the check.

        Raises:
            TypeError, ValueError: The model is a function, or split by fully_shard; shapes do not
                fit; margin="logit_gap" has no input gradient to check.

        Example:
            >>> criterion, model = AverageMarginLoss(regularizer="hinge"), nn.Linear(5, 3)
            >>> criterion.check(model, torch.ones(1, 5), torch.tensor([0])).agrees
            True
        """
        mode = self._options.mode
        if mode is None or self._options.margin != "first_order":
            raise ValueError(
                'check() judges the gradient of the norm in margin="first_order"; '
                f'margin="{self._options.margin}" has none'
            )
        passes = self._passes(model, ModelCall(call, logits_fn))
        objective = self._objective(None, self._options.mu)
        subject = Subject(passes, objective, inputs.detach(), target, seed)
        return check_gradient(subject, mode, directions)

    def _passes(self, model: Callable[..., Any], call: ModelCall) -> Passes:
        o = self._options
        if o.mode is None:
            return Passes(model, call, o.batchnorm, o.fraction)
        # What call= closes over may be something else by the time of the backward.
        deferred = o.mode.deferred and call.call is None
        return Passes(model, call, o.batchnorm, o.fraction, o.mode.reruns, deferred)

    def _objective(self, normalizer: float | Tensor | None, mu: float) -> Objective:
        o = self._options
        reduction = o.reduction if normalizer is None else "sum"
        if self.weight is not None or (mu, reduction) != (o.mu, o.reduction):
            # This step's mu has the weight of all the steps of `every`.
            o = replace(o, mu=mu, every=1, weight=self.weight, reduction=reduction)
        return Objective(o, normalizer)

    def _next_step(self) -> tuple[bool, float]:
        """Whether this step computes margins (see ``every``), and its mu."""
        o = self._options
        if not self.training or not torch.is_grad_enabled():
            return True, o.mu
        step = self._counter.next_call()
        return self._counter.has_turn(step, o.every), o.mu * rise(step, o.warmup)

    def extra_repr(self) -> str:
        """The options, as they would be written."""
        return str(self._options)


add_option_attributes(AverageMarginLoss)
