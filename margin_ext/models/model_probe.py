"""What a first look at a model must show before anything is measured on it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from margin_ext.checks import shape_text
from margin_ext.logits_differ import differ
from margin_ext.models.checked_logits import checked_logits
from margin_ext.modules_behind import modules_behind

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["require_measurable"]

# Samples that are looked at.
PROBED = 32


def require_measurable(model: Model, inputs: Tensor) -> None:
    """Run a model in evaluation mode on some samples, and refuse what cannot be measured.

    Probabilities in place of logits give a warning, because distances to the boundary are still
    those of the model, and first-order margins are not.

    Args:
        model: In evaluation mode.
        inputs: [B, ...]; not changed.

    Raises:
        TypeError, ValueError: The model fails on the inputs; runs a module in training mode;
            changes its inputs in place; gives other logits when it runs again; or gives a sample
            other logits when other samples are in its batch.
    """
    x = inputs[:PROBED].detach()
    with _only_in_eval_mode():
        given = x.clone()
        logits = checked_logits(_told_failures(model), given).detach().clone()
        if not torch.equal(given.detach(), x):
            raise ValueError(
                "the model changes its inputs in place (such as x.sub_(mean)): the values that are "
                "measured would not be those of the data; write x = x - mean in its forward"
            )
        # On a CPU the same operations give the same bits; a GPU may choose other kernels.
        if differ(checked_logits(model, x.clone()), logits, 0.02 if x.is_cpu else 1.0):
            raise ValueError(
                "the model gives other logits when it runs again on the same inputs: something in "
                "it is random in eval mode (functional.dropout without training=self.training, "
                "noise, sampling) or keeps a state; make it deterministic, such as by a fixed "
                "seed in its forward"
            )
        _require_independent_samples(model, x, logits)
    _warn_of_probabilities(logits)


class _TrainingModeError(ValueError):
    """A module in training mode was about to run."""


def _told_failures(model: Model) -> Model:
    """The model, with its own failures in words."""

    def run(inputs: Tensor) -> Tensor:
        try:
            return model(inputs)
        except (torch.OutOfMemoryError, _TrainingModeError):
            raise
        # Whatever the model's code raises.
        except Exception as error:
            types = {str(p.dtype) for m in modules_behind(model) for p in m.parameters()}
            of = f", of a model in {', '.join(sorted(types))}" if types else ""
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise ValueError(
                f"the model fails on inputs {shape_text(inputs)} in {inputs.dtype}{of}: {reason}"
            ) from error

    return run


@contextmanager
def _only_in_eval_mode() -> Iterator[None]:
    """Refuse to run modules in training mode, wherever the function that is measured has them."""
    thread = threading.get_ident()

    def check(module: nn.Module, _: object) -> None:
        if module.training and threading.get_ident() == thread:
            raise _TrainingModeError(
                f"the model runs a {type(module).__name__} in training mode, which cannot be found "
                "from the function that was given: pass the module, or put it into eval mode"
            )

    check.changes_nothing = True  # type: ignore[attr-defined]
    handle = register_module_forward_pre_hook(check)
    try:
        with warnings.catch_warnings() if "torch._dynamo" in sys.modules else nullcontext():
            if "torch._dynamo" in sys.modules:
                # Compiled modules tell of hooks on all modules; this one does no harm.
                warnings.filterwarnings("ignore", ".*there are global hooks on modules.*")
            yield
    finally:
        handle.remove()


def _require_independent_samples(model: Model, x: Tensor, logits: Tensor) -> None:
    for index, other in _other_batches(x):
        try:
            found = checked_logits(model, other.clone())
        except (RuntimeError, IndexError, ValueError):
            if x.shape[0] > 1:
                raise
            continue  # a model for batches of one, or whose inputs have a domain
        # A batch of another size may run other kernels.
        if differ(found[:1], logits[index : index + 1], 1.0 if x.shape[0] > 1 else 20.0):
            raise ValueError(
                "the model gives a sample other logits when other samples are in its batch (such "
                "as BatchNorm without running statistics, or a mean over the batch): no margin "
                "belongs to a sample alone; measure it with running statistics"
            )


def _other_batches(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Batches that begin with the sample of an index, and go on with others than x."""
    if x.shape[0] == 1:
        yield 0, torch.cat([x, x.flatten(1).roll(1, dims=1).reshape(x.shape)])
        yield 0, torch.cat([x, 2 * x])
        return
    # Of the same size, so that the same kernels run.
    yield 0, x[:1].expand_as(x)
    yield x.shape[0] - 1, x[-1:].expand_as(x)


def _warn_of_probabilities(logits: Tensor) -> None:
    z = logits.double()
    if bool((z < 0).any()) or bool((z > 1 + 1e-3).any()) or not bool(z.any()):
        return
    sums = bool(((z.sum(dim=1) - 1).abs() < 1e-3).all())
    if sums or logits.shape[0] >= 8:
        kind = "softmax" if sums else "sigmoid"
        warnings.warn(
            f"the model seems to return probabilities (all outputs lie in 0 to 1"
            f"{' and add up to 1' if sums else ''}), not logits: gaps and first-order margins of "
            f"probabilities saturate; leave out the final {kind}, or pass "
            "logits_fn=lambda probabilities: probabilities.log()",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """Stack level of the first caller outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("margin_ext"):
        frame, level = frame.f_back, level + 1
    return level
