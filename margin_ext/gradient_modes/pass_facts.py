"""Trial passes, which find out whether the passes of a model can be compared.

A gradient that compares several passes is right only if the passes differ in nothing but their
inputs, and if it is known whether a sample's logits depend on the other samples. A model's layers
tell neither, so a few trial passes are made before the first step, and again now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from margin_ext.gradient_modes.layer_state import (
    batchnorms_in_use,
    buffer_of,
    buffers_replaced,
    copied_buffers,
    state_kept,
)
from margin_ext.gradient_modes.model_call import ModelCall
from margin_ext.gradient_modes.parallel import expects_backward
from margin_ext.gradient_modes.randomness import RandomState
from margin_ext.gradient_modes.side_channels import nothing_kept
from margin_ext.logits_differ import differ
from margin_ext.random_states import RandomSource, own_sources

__all__ = ["PassFacts", "Trial", "pass_facts"]

# Any seed; the step's own random state is another one.
_OTHER_SEED = 1997
# How many repeated passes must give the same logits.
_REPEATS = 2
# The trial is repeated at these steps: a model that tosses a coin in each pass may see the same
# side a few times.
_TRIED_AGAIN = (10, 100, 1000)
# Facts are kept for so many combinations of training flags; a model with more starts over.
_MOST_STATES = 16


@dataclass(frozen=True)
class PassFacts:
    """What is known about the passes of a model in its present training or eval mode.

    Attributes:
        moving: The buffers that a pass changes in layers other than torch's, each as the index of
            its module and its name.
        generators: Random generators that belong to layers.
        repeatable: Whether a second pass gives the same logits from the same random state, buffers
            and inputs.
        random: Whether the logits depend on the random state.
        batch_dependent: Whether a sample's logits depend on the other samples; None: not tested.
    """

    moving: tuple[tuple[int, str], ...] = ()
    generators: tuple[RandomSource, ...] = ()
    repeatable: bool = True
    random: bool = False
    batch_dependent: bool | None = None


@dataclass(frozen=True)
class Trial:
    """A model and the inputs of its trial passes.

    Attributes:
        model: The module or function that is run.
        run: Maps inputs [B, ...] to logits.
        modules: All modules that it runs.
        batchnorm: As in :class:`margin_ext.AverageMarginLoss`.
        inputs: [B, ...].
    """

    model: Any
    run: Callable[[Tensor], Tensor]
    modules: Sequence[nn.Module]
    batchnorm: str
    inputs: Tensor

    def facts(self, *, dependence: bool) -> PassFacts:
        """Run the model four to six times, and leave it as it was.

        Args:
            dependence: Whether to test if samples depend on each other; where a BatchNorm makes
                them, no test is needed.
        """
        generators = tuple(own_sources(self.modules))
        state = RandomState(self.inputs, self.modules, generators)
        with self.unseen(), state.replayed():
            logits, moving = self._first(state)
            with state.others(_OTHER_SEED):
                random = differ(self._pass(self.inputs), logits)
            repeatable = not any(
                differ(self.replay(state, self.inputs), logits) for _ in range(_REPEATS)
            )
            dependent: bool | None = None
            if dependence:
                known = batchnorms_in_use(self.modules, self.batchnorm)
                dependent = bool(known) or self._dependent(state, logits)
        return PassFacts(moving, generators, repeatable, random, dependent)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Undo what layers and hooks record in a pass, such as auxiliary losses."""
        with _attributes_kept(self.modules), nothing_kept(self.model):
            yield

    def _first(self, state: RandomState) -> tuple[Tensor, tuple[tuple[int, str], ...]]:
        """The logits, and the buffers that the pass has changed or replaced."""
        buffers = copied_buffers(self.modules)
        with state.replayed(), buffers_replaced(buffers), state_kept(self.modules, self.batchnorm):
            logits = self._logits(self.inputs)
            after = [buffer_of(module, name) for module, name, _ in buffers]
        index = {id(module): i for i, module in enumerate(self.modules)}
        return logits, tuple(
            (index[id(module)], name)
            for (module, name, _), now in zip(buffers, after, strict=True)
            # Compared by value, because torch's batch_norm does not raise a buffer's version.
            if now is not None and not _same(now, buffer_of(module, name))
        )

    def _dependent(self, state: RandomState, logits: Tensor) -> bool:
        """Whether the logits of one half change when the other half of the samples does."""
        generator = torch.Generator().manual_seed(_OTHER_SEED)
        order = torch.randperm(len(self.inputs), generator=generator).to(self.inputs.device)
        for replaced in (order < len(order) // 2, order >= len(order) // 2):
            moved = self.replay(state, self.with_others(replaced))
            if differ(moved[~replaced], logits[~replaced]):
                return True
        return False

    def with_others(self, replaced: Tensor) -> Tensor:
        """The inputs, with copies of the other samples where replaced (bool [B]) is true."""
        moved, kept = self.inputs.detach().clone(), (~replaced).nonzero().squeeze(1)
        samples = replaced.nonzero().squeeze(1)
        if len(kept):
            moved[samples] = moved[kept[torch.arange(len(samples), device=kept.device) % len(kept)]]
        return moved

    def replay(self, state: RandomState, inputs: Tensor) -> Tensor:
        """Logits of inputs, from the saved random state and the saved state of the layers."""
        with state.replayed():
            return self._pass(inputs)

    def _pass(self, inputs: Tensor) -> Tensor:
        buffers = copied_buffers(self.modules)
        with buffers_replaced(buffers), state_kept(self.modules, self.batchnorm):
            return self._logits(inputs)

    def _logits(self, inputs: Tensor) -> Tensor:
        # With a graph, as in the step: torch.compile compiles the case without a graph separately,
        # and its results may round differently.
        graph = not expects_backward(self.modules)
        with torch.set_grad_enabled(graph):
            given = inputs.detach().clone().requires_grad_(graph)
            return self.run(given).detach()


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


@contextmanager
def _attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    kept = [dict(vars(module)) for module in plain]
    try:
        yield
    finally:
        for module, before in zip(plain, kept, strict=True):
            now = vars(module)
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)


@dataclass
class _Known:
    facts: PassFacts
    uses: int = 0


_known: WeakKeyDictionary[Any, dict[Any, _Known]] = WeakKeyDictionary()


def pass_facts(model: Any, trial: Trial, call: ModelCall, *, dependence: bool) -> PassFacts:
    """The facts about a model, found out once for each combination of its training flags.

    Args:
        model: A module or a function.
        trial: How it is run.
        call: What turns inputs into logits by the model.
        dependence: As for :meth:`Trial.facts`.
    """
    flags = tuple((id(module), module.training) for module in trial.modules)
    state = (flags, _codes(call), trial.batchnorm)
    found = _known.setdefault(_anchor(model, trial.modules), {})
    known = found.get(state)
    if known is None or (dependence and known.facts.batch_dependent is None):
        if len(found) >= _MOST_STATES:
            found.clear()
        known = found[state] = _Known(trial.facts(dependence=dependence))
    known.uses += 1
    if known.uses in _TRIED_AGAIN:
        known.facts = trial.facts(dependence=known.facts.batch_dependent is not None)
    return known.facts


def _codes(call: ModelCall) -> tuple[int, ...]:
    """Identify the functions by their code: a lambda is a new object in every step."""
    return tuple(id(getattr(f, "__code__", type(f))) for f in (call.call, call.logits_fn))


def _anchor(model: Any, modules: Sequence[nn.Module]) -> Any:
    """The object whose lifetime the facts share: a function may exist for a single call."""
    if modules:
        return modules[0]
    return getattr(model, "__code__", type(model))
