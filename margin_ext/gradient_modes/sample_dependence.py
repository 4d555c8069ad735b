"""Where samples of a batch begin to depend on each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.gradient_modes.pass_facts import Trial
from margin_ext.gradient_modes.randomness import RandomState
from margin_ext.logits_differ import differ

__all__ = ["first_dependence"]


def first_dependence(model: nn.Module, trial: Trial) -> str | None:
    """The first layer whose output for a sample depends on other samples; None where none does.

    Every pair of samples is looked at: for each binary digit of their indices, the samples that
    have a 0 there are replaced, and then those that have a 1.

    Args:
        model: The module that is run.
        trial: How it is run.
    """
    names = {id(module): name for name, module in model.named_modules()}
    batch = torch.arange(len(trial.inputs), device=trial.inputs.device)
    state = RandomState(trial.inputs, trial.modules)
    with trial.unseen(), _recorded(trial) as outputs:
        base = trial.replay(state, trial.inputs)
        layers = list(outputs)
        for digit in range(max(len(batch) - 1, 0).bit_length()):
            for value in (0, 1):
                replaced = (batch >> digit) & 1 == value
                if replaced.all() or not replaced.any():
                    continue
                outputs.clear()
                logits = trial.replay(state, trial.with_others(replaced))
                kept = ~replaced
                for (module, before), (other, after) in zip(layers, outputs, strict=False):
                    if module is other and differ(before[kept], after[kept]):
                        name = names.get(id(module)) or "the model's own forward"
                        return f"{name} ({type(module).__name__})"
                if differ(base[kept], logits[kept]):
                    return "what turns the model's output into logits"
    return None


@contextmanager
def _recorded(trial: Trial) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Outputs [B, ...] of all layers in the order in which they are made."""
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, tuple) and output:
            output = output[0]
        if not isinstance(output, Tensor) or output.shape[:1] != trial.inputs.shape[:1]:
            return
        if output.is_complex():
            output = torch.view_as_real(output.resolve_conj())
        if output.is_floating_point():
            found.append((module, output.detach().clone()))

    with ExitStack() as hooks:
        for module in trial.modules:
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(note).remove)
        yield found
