"""One training step: runs the model as often as needed and combines the passes into the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from margin_ext.gradient_mode import GradientMode
from margin_ext.gradient_modes.compiled import kept_for_two_gradients
from margin_ext.gradient_modes.deferred_passes import Source, deferred_passes
from margin_ext.gradient_modes.inputs_in_place import changes_refused
from margin_ext.gradient_modes.layer_state import (
    LayerState,
    batchnorms_in_use,
    inner_modules,
    training_batchnorms,
)
from margin_ext.gradient_modes.model_call import ModelCall, PassOutput
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.parallel import (
    refuse_fsdp1,
    refuse_static_graph,
    without_ddp,
)
from margin_ext.gradient_modes.pass_facts import PassFacts, Trial, pass_facts
from margin_ext.gradient_modes.randomness import RandomState
from margin_ext.gradient_modes.recomputation import recomputed_under
from margin_ext.gradient_modes.side_channels import side_channels_kept
from margin_ext.gradient_modes.step import Step
from margin_ext.loss_options import BatchNormPolicy
from margin_ext.movable_inputs import require_movable, require_same_batch
from margin_ext.op_results import MarginLoss
from margin_ext.statistics import MARGIN_STATISTICS, STATISTIC_NAMES, BatchStatistics

__all__ = ["Passes", "run_step"]

_NO_RUNNING_STATISTICS = (
    'batchnorm="running" takes margins with running statistics, but in this model samples depend '
    "on each other through something without usable running statistics: a custom layer, a module "
    "that was exported or traced in training mode, or a function of the whole batch. Put the "
    "module into eval mode before it is exported or traced, or take "
    'batchnorm="batch"'
)


@dataclass(frozen=True)
class Passes:
    """How the model is run.

    Attributes:
        model: A module, or any function of the inputs.
        call: Maps the model and inputs [B, ...] to logits.
        batchnorm: The statistics that BatchNorm in training uses in passes that margins are
            taken from.
        fraction: The fraction of the batch whose margins are taken, above 0 and at most 1.
        reruns: How many more times the gradient mode may run the model, on moved inputs.
        deferred: Whether these extra passes may run during backward.
    """

    model: Any
    call: ModelCall
    batchnorm: BatchNormPolicy = "batch"
    fraction: float = 1.0
    reruns: int = 0
    deferred: bool = False

    @cached_property
    def modules(self) -> list[nn.Module]:
        """All modules of the model; for a function, all modules that it runs."""
        return inner_modules(without_ddp(self.model))

    @property
    def separate(self) -> bool:
        """Whether margins need a pass of their own, apart from the cross-entropy's."""
        running = self.batchnorm == "running" and bool(training_batchnorms(self.modules))
        return running or self.fraction < 1

    @property
    def _known_dependent(self) -> bool:
        """Whether BatchNorm makes samples depend on each other in the passes for margins."""
        return bool(batchnorms_in_use(self.modules, self.batchnorm))

    @property
    def _is_lazy(self) -> bool:
        """Whether the model has lazy layers that have not seen an input yet."""
        parameters = (p for module in self.modules for p in module._parameters.values())
        return any(is_lazy(p) for p in parameters if p is not None)

    def facts(self, mode: GradientMode, inputs: Tensor) -> PassFacts:
        """What the mode has to know about passes on inputs [B, ...] that margins are taken from.

        Raises:
            ValueError: batchnorm="running", and samples depend on each other in spite of it.
        """
        running = self.batchnorm == "running"
        needed = self.reruns or self.separate or running
        if not needed or torch.compiler.is_compiling() or self._is_lazy:
            return PassFacts()
        dependence = running or mode.asks_dependence
        facts = pass_facts(self.model, self.trial(inputs), self.call, dependence=dependence)
        if running and facts.batch_dependent and not self._known_dependent:
            raise ValueError(_NO_RUNNING_STATISTICS)
        return facts

    def trial(self, inputs: Tensor) -> Trial:
        """The model on inputs [B, ...], for passes that only find something out."""
        inner = without_ddp(self.model)

        def run(given: Tensor) -> Tensor:
            with changes_refused(given, further_passes=False):
                logits = self.call(inner, given)
            require_same_batch(given, logits)
            return logits

        return Trial(inner, run, self.modules, self.batchnorm, inputs)

    def whole(self, inputs: Tensor) -> PassOutput:
        """The pass for the cross-entropy, where margins are taken in passes of their own."""
        layers = LayerState(self.modules, self.batchnorm)
        with kept_for_two_gradients(), recomputed_under(layers.first_again):
            return self.call.output(self.model, inputs)

    def margin_step(
        self,
        objective: Objective,
        mode: GradientMode,
        inputs: Tensor,
        target: Tensor,
        *,
        first: bool,
    ) -> tuple[Step, PassOutput]:
        """Run the model on the inputs whose margins are taken.

        Args:
            objective: The loss.
            mode: The gradient mode, which may ask for more passes.
            inputs: [B, ...]. Where they require grad, they get their gradient too.
            target: Labels of the inputs.
            first: Whether this is the first pass of the step. That pass updates BatchNorm's
                running statistics and goes through the DistributedDataParallel wrapper.
        """
        lazy, facts = self._is_lazy, self.facts(mode, inputs)
        source = Source(inputs) if inputs.requires_grad else None
        inputs = inputs.detach().requires_grad_() if source is None else inputs
        inner = without_ddp(self.model)
        moving = [(self.modules[index], name) for index, name in facts.moving]
        layers = LayerState(self.modules, self.batchnorm, moving)

        def again(moved: Tensor) -> PassOutput:
            with layers.kept(), recomputed_under(layers.again), side_channels_kept(inner):
                return self.call.output(inner, moved)

        def run() -> tuple[PassOutput, Tensor]:
            with changes_refused(inputs, further_passes=self.reruns > 0):
                if first:
                    with recomputed_under(layers.first_again):
                        out = self.call.output(self.model, inputs)
                else:
                    out = again(inputs)
            logits = out.class_logits
            require_same_batch(inputs, logits)
            return out, logits

        if not self.reruns:
            out, logits = run()
            labels = objective.labels(logits, target)
            return Step(objective, inputs, logits, labels, self.modules), out
        deferred = None
        if self.deferred:  # created before the pass, so that backward reaches it after the pass
            shape = inputs.shape[:1] if objective.per_sample else ()
            deferred = deferred_passes(
                self.model, inputs, self.batchnorm, shape, self.reruns, source=source
            )
        state = RandomState(inputs, self.modules, facts.generators)

        def rerun(moved: Tensor) -> Tensor:
            if source is not None and not moved.requires_grad:
                moved = source.move(moved)
            with state.replayed(alike=facts.random):
                return again(moved).class_logits

        out, logits = run()
        state.first_pass_ends()
        if lazy:
            facts = self.facts(mode, inputs)
        step = Step(
            objective,
            inputs,
            logits,
            objective.labels(logits, target),
            self.modules,
            rerun,
            self._known_dependent or bool(facts.batch_dependent),
            deferred,
            facts.repeatable,
        )
        return step, out


def run_step(
    passes: Passes,
    objective: Objective,
    mode: GradientMode,
    inputs: Tensor,
    target: Tensor,
) -> tuple[PassOutput, MarginLoss]:
    """Run the model on a batch: its outputs and the loss.

    Where margins are taken in a pass of their own, that pass draws its own random numbers, and
    samples outside of it have the margin and norm NaN.
    """
    refuse_static_graph(passes.model)
    refuse_fsdp1(passes.model)
    require_movable(inputs)
    if not passes.separate:
        with kept_for_two_gradients():
            step, out = passes.margin_step(objective, mode, inputs, target, first=True)
            return out, mode(step)
    with changes_refused(inputs, further_passes=True):
        out = passes.whole(inputs)
    logits = out.class_logits
    require_same_batch(inputs, logits)
    labels = objective.labels(logits, target)
    plain = objective.plain(logits, labels)
    counted = labels.counted()
    chosen = _choose(counted, passes.fraction)
    with kept_for_two_gradients():
        part, _ = passes.margin_step(objective, mode, inputs[chosen], target[chosen], first=False)
        regularized = mode(part)
    term = regularized.loss - objective.cross_entropy(part.logits, part.labels)
    # How many samples each chosen sample represents.
    weight = counted.sum() / counted[chosen].sum().clamp_min(1)
    return out, _joined(plain, regularized, term, chosen, weight, objective)


def _choose(counted: Tensor, fraction: float) -> Tensor:
    """Choose at random the samples whose margins are taken; ignored samples come last."""
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
    """The loss of the whole batch: its cross-entropy plus the chosen samples' regularizer."""
    term, weight = term.to(plain.loss.dtype), weight.to(plain.loss.dtype)
    if objective.per_sample:
        loss = plain.loss.index_add(0, chosen, term * weight)
    else:
        # The mean over the chosen samples estimates that over the batch; a sum is scaled up.
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
