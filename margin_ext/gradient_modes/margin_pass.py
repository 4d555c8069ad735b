"""One training step: the model's passes, and the loss that they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.gradient_mode import GradientMode
from margin_ext.gradient_modes.compiled import kept_for_two_gradients
from margin_ext.gradient_modes.deferred_passes import Source, deferred_passes
from margin_ext.gradient_modes.inputs_in_place import changes_refused
from margin_ext.gradient_modes.layer_state import state_kept, training_batchnorms
from margin_ext.gradient_modes.model_call import ModelCall, PassOutput
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.parallel import (
    refuse_fsdp1,
    refuse_static_graph,
    without_ddp,
)
from margin_ext.gradient_modes.randomness import RandomState
from margin_ext.gradient_modes.side_channels import side_channels_kept
from margin_ext.gradient_modes.step import Step
from margin_ext.loss_options import BatchNormPolicy
from margin_ext.movable_inputs import require_movable, require_same_batch
from margin_ext.op_results import MarginLoss
from margin_ext.statistics import MARGIN_STATISTICS, STATISTIC_NAMES, BatchStatistics

__all__ = ["Passes", "run_step"]


@dataclass(frozen=True)
class Passes:
    """How the model is run.

    Attributes:
        model: A module, or any function of the inputs.
        call: Maps the model and inputs [B, ...] to logits.
        batchnorm: What BatchNorm in training normalises by where margins are concerned.
        fraction: The part of the batch whose margins are taken, 0 to 1.
        reruns: How many times the mode may run the model on other inputs too.
        deferred: Whether it may do so in the backward.
    """

    model: Any
    call: ModelCall
    batchnorm: BatchNormPolicy = "batch"
    fraction: float = 1.0
    reruns: int = 0
    deferred: bool = False

    @property
    def separate(self) -> bool:
        """Whether margins need a pass of their own, in addition to that of the cross-entropy."""
        running = self.batchnorm == "running" and bool(training_batchnorms(self.model))
        return running or self.fraction < 1

    @property
    def module(self) -> nn.Module | None:
        """The model, where it is a module."""
        return self.model if isinstance(self.model, nn.Module) else None

    def whole(self, inputs: Tensor) -> PassOutput:
        """A pass over the whole batch whose margins, if any, are taken in passes of their own."""
        return self.call.output(self.model, inputs)

    def margin_step(
        self, objective: Objective, inputs: Tensor, target: Tensor, *, first: bool
    ) -> tuple[Step, PassOutput]:
        """Run the model on the inputs of which margins are taken.

        Args:
            objective: The loss.
            inputs: [B, ...]. Where they require grad, what computed them gets its gradient.
            target: Labels of the inputs.
            first: Whether this is the step's first pass, which moves BatchNorm's running
                statistics and goes through the model's DistributedDataParallel wrapper.
        """
        source = Source(inputs) if inputs.requires_grad else None
        inputs = inputs.detach().requires_grad_() if source is None else inputs
        inner = without_ddp(self.model)

        def again(moved: Tensor) -> PassOutput:
            with state_kept(inner, self.batchnorm), side_channels_kept(inner):
                return self.call.output(inner, moved)

        def run() -> tuple[PassOutput, Tensor]:
            with changes_refused(inputs, further_passes=self.reruns > 0):
                out = self.call.output(self.model, inputs) if first else again(inputs)
            logits = out.class_logits
            require_same_batch(inputs, logits)
            return out, logits

        if not self.reruns:
            out, logits = run()
            labels = objective.labels(logits, target)
            return Step(objective, inputs, logits, labels, self.module), out
        deferred = None
        if self.deferred:  # which has to come before the pass that it lets go first
            shape = inputs.shape[:1] if objective.per_sample else ()
            deferred = deferred_passes(
                self.model, inputs, self.batchnorm, shape, self.reruns, source=source
            )
        state = RandomState(inputs, self.model)

        def rerun(moved: Tensor) -> Tensor:
            if source is not None and not moved.requires_grad:
                moved = source.move(moved)
            with state.replayed():
                return again(moved).class_logits

        out, logits = run()
        batchnorms = training_batchnorms(inner)
        if self.batchnorm == "running":
            batchnorms = [layer for layer in batchnorms if layer.running_mean is None]
        labels, dependent = objective.labels(logits, target), bool(batchnorms)
        step = Step(objective, inputs, logits, labels, self.module, rerun, dependent, deferred)
        return step, out


def run_step(
    passes: Passes,
    objective: Objective,
    mode: GradientMode,
    inputs: Tensor,
    target: Tensor,
) -> tuple[PassOutput, MarginLoss]:
    """What the model gave for a batch, and the loss.

    Where margins have a pass of their own, its randomness is its own too, and samples that it
    leaves out have margin and norm NaN.
    """
    refuse_static_graph(passes.model)
    refuse_fsdp1(passes.model)
    require_movable(inputs)
    if not passes.separate:
        with kept_for_two_gradients(passes.model):
            step, out = passes.margin_step(objective, inputs, target, first=True)
            return out, mode(step)
    with changes_refused(inputs, further_passes=True):
        out = passes.whole(inputs)
    logits = out.class_logits
    require_same_batch(inputs, logits)
    labels = objective.labels(logits, target)
    plain = objective.plain(logits, labels)
    counted = labels.counted()
    chosen = _choose(counted, passes.fraction)
    with kept_for_two_gradients(passes.model):
        part, _ = passes.margin_step(objective, inputs[chosen], target[chosen], first=False)
        regularized = mode(part)
    term = regularized.loss - objective.cross_entropy(part.logits, part.labels)
    # How many samples one chosen sample stands for.
    weight = counted.sum() / counted[chosen].sum().clamp_min(1)
    return out, _joined(plain, regularized, term, chosen, weight, objective)


def _choose(counted: Tensor, fraction: float) -> Tensor:
    """The samples whose margins are taken: at random, those that count before those that do not."""
    batch, device = counted.shape[0], counted.device
    if fraction >= 1:
        return torch.arange(batch, device=device)
    count = min(batch, max(1, round(fraction * batch)))
    order = torch.randperm(batch, device=device)
    return order[(~counted[order]).to(torch.uint8).argsort(stable=True)][:count]


def _joined(
    plain: MarginLoss,
    part: MarginLoss,
    term: Tensor,
    chosen: Tensor,
    weight: Tensor,
    objective: Objective,
) -> MarginLoss:
    """The loss of the whole batch from its cross-entropy and the regularizer of the chosen."""
    term, weight = term.to(plain.loss.dtype), weight.to(plain.loss.dtype)
    if objective.per_sample:
        loss = plain.loss.index_add(0, chosen, term * weight)
    else:
        # A mean over the chosen stands for that over the batch; a sum has to be scaled up.
        is_sum = objective.options.reduction == "sum"
        loss = plain.loss + (term * weight if is_sum else term)
    missing = torch.full_like(plain.gap, math.nan)
    values = plain.statistics.values_tensor.clone()
    for name in MARGIN_STATISTICS:
        index = STATISTIC_NAMES.index(name)
        values[index] = part.statistics.values_tensor[index]
    return MarginLoss(
        loss,
        missing.index_copy(0, chosen, part.margin.to(missing.dtype)),
        plain.gap,
        missing.index_copy(0, chosen, part.norm.to(missing.dtype)),
        BatchStatistics(values),
    )
