"""Compares a mode's parameter gradient with how the loss changes when the parameters move.

A gradient can be wrong without an error. For example, a function whose backward is not
differentiable is missing from the second derivative, or a compiled graph computes something else.
The values of the loss need no second derivative, so they are the judge; they are computed on an
uncompiled float64 copy of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from margin_ext.gradient_mode import GradientMode
from margin_ext.gradient_modes.check_report import GradientCheck, Measured, conclude
from margin_ext.gradient_modes.detached import Detached
from margin_ext.gradient_modes.layer_state import training_batchnorms
from margin_ext.gradient_modes.margin_pass import Passes, run_step
from margin_ext.gradient_modes.objective import Objective
from margin_ext.gradient_modes.parallel import is_sharded, refuse_static_graph, without_ddp
from margin_ext.gradient_modes.sample_dependence import first_dependence
from margin_ext.op_results import MarginLoss

__all__ = ["Subject", "check_gradient"]

# Relative to the parameters. In float64 the step is too small to reach a kink of a ReLU network.
_STEP: Final = {torch.float64: 1e-6, torch.float32: 1e-2}
_TOLERANCE: Final = {torch.float64: 0.02, torch.float32: 0.1}
# The relative difference allowed between the losses of the model and of its float64 copy.
_SAME_LOSS: Final = 0.02
_TINY: Final = 1e-300
_ROUNDING: Final = 1e-6
_KINKED: Final = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool2d)


@dataclass(frozen=True)
class Subject:
    """A model on a batch, run with the same randomness every time.

    Attributes:
        passes: How the model is run.
        objective: The loss.
        inputs: [B, ...], without a graph.
        target: Labels, as the objective takes them.
        seed: Seed of the random numbers that the model draws, and of the check's directions.
    """

    passes: Passes
    objective: Objective
    inputs: Tensor
    target: Tensor
    seed: int

    def parameters(self) -> dict[str, Tensor]:
        """Those of the model that are trained, by name."""
        model = _bare(self.passes.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def run(self, mode: GradientMode) -> tuple[MarginLoss, Tensor]:
        """The loss by a mode, and its cross-entropy part; buffers and randomness are restored."""
        with self._restored():
            return self._run(mode)

    def _run(self, mode: GradientMode) -> tuple[MarginLoss, Tensor]:
        passed, out = run_step(self.passes, self.objective, mode, self.inputs, self.target)
        logits = passed.class_logits
        labels = self.objective.labels(logits, self.target)
        return out, self.objective.cross_entropy(logits, labels)

    def functions(self) -> list[str]:
        """Names of the Python autograd functions between inputs and logits."""
        with self._restored():
            logits = self.passes.call(
                _bare(self.passes.model), self.inputs.clone().requires_grad_()
            )
        nodes: list[Any] = [logits.grad_fn]
        seen, names = set(nodes), set()
        while nodes:
            node = nodes.pop()
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                names.add(type(node).__name__.removesuffix("Backward"))
            following = {next_node for next_node, _ in node.next_functions if next_node} - seen
            seen |= following
            nodes.extend(following)
        return sorted(names)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        model = _bare(self.passes.model)
        buffers = [(b, b.detach().clone()) for b in model.buffers()]
        # Every mode treats running statistics as constants, so they must not follow the parameters.
        layers = [m for m in training_batchnorms(model.modules()) if isinstance(m, _BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 0.0
        devices = [self.inputs.device] if self.inputs.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed)
                yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            for buffer, before in buffers:
                buffer.data.copy_(before)

    def value(self) -> tuple[float, float]:
        """The regularizer's part of the loss, and the cross-entropy's."""
        out, cross_entropy = self.run(Detached())
        ce = float(cross_entropy.detach().sum())
        return float(out.loss.detach().sum()) - ce, ce

    def gradients(self, mode: GradientMode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradient of the whole loss by a mode, and that of its cross-entropy."""
        # The backward may run the model too, so it belongs inside _restored().
        with self._restored():
            whole = self._gradient(self._run(mode)[0].loss)
        with self._restored():
            return whole, self._gradient(self._run(Detached())[1])

    def _gradient(self, loss: Tensor) -> dict[str, Tensor]:
        parameters = self.parameters()
        kept = {name: p.grad for name, p in parameters.items()}
        for p in parameters.values():
            p.grad = None
        try:
            # autograd.grad would skip paths to other leaves, and so miss errors on them.
            loss.sum().backward()
            return {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in parameters.items()
            }
        finally:
            for name, p in parameters.items():
                p.grad = kept[name]


def check_gradient(subject: Subject, mode: GradientMode, directions: int) -> GradientCheck:
    """See :meth:`margin_ext.AverageMarginLoss.check`."""
    passes = subject.passes
    if not isinstance(passes.model, nn.Module):
        raise TypeError("check needs a module: a function's parameters are not known")
    if is_sharded(passes.model):
        raise ValueError("check cannot copy a model that is split by fully_shard: check it before")
    try:
        refuse_static_graph(passes.model)
    except RuntimeError as error:
        return GradientCheck("wrong", math.nan, math.nan, (str(error),))
    findings: list[str] = []
    try:
        whole, cross_entropy = subject.gradients(mode)
    except RuntimeError as error:
        first = str(error).strip().split("\n")[0]
        words = f"gradient={mode} fails on this model: {type(error).__name__}: {first}"
        return GradientCheck("wrong", math.nan, math.nan, (words + mode.advice,))
    judge = _judge(subject, findings)
    if judge.value() != judge.value():
        findings.append(
            "The loss is not the same when the model is run twice from the same random state: "
            "it draws random numbers elsewhere, or keeps a state. What follows is not reliable."
        )
    bare = _bare(subject.passes.model)
    if where := first_dependence(bare, replace(subject.passes, model=bare).trial(subject.inputs)):
        findings.append(
            f"The samples of a batch depend on each other, first in {where}: a row of the input "
            "gradient also holds its sample's effect on the gaps of the others. Finite differences "
            'fold this in, except with unit="margin", which keeps the samples\' own steps.'
        )
    margin, plain, size = _errors(judge, whole, cross_entropy, directions)
    double = judge.inputs.dtype == torch.float64
    measured = Measured(
        margin_error=margin,
        cross_entropy_error=plain,
        size=size,
        tolerance=_TOLERANCE[torch.float64 if double else torch.float32],
        functions=subject.functions(),
        kinked=_kinked(judge),
        error_of=partial(_error_of, judge),
    )
    return conclude(mode, measured, findings)


def _bare(model: Any) -> nn.Module:
    """The module inside wrappers."""
    inner: nn.Module = without_ddp(getattr(model, "_orig_mod", model))
    return getattr(inner, "_orig_mod", inner)


def _judge(subject: Subject, findings: list[str]) -> Subject:
    """A float64 copy where the model has one with the same loss, else the model itself."""
    model = _bare(subject.passes.model)
    same = replace(subject, passes=replace(subject.passes, model=model))
    wanted = sum(subject.value())
    try:
        twin = _double_copy(model)
        judge = replace(
            same,
            passes=replace(subject.passes, model=twin),
            inputs=subject.inputs.double(),
        )
        with torch.autocast(subject.inputs.device.type, enabled=False):
            found = sum(judge.value())
    except (RuntimeError, TypeError) as error:
        first = str(error).split("\n")[0]
        findings.append(
            f"There is no float64 copy of the model to compare with ({first}), so that its own "
            "precision has to do: at kinks of the network the comparison is coarse."
        )
        return same
    if abs(found - wanted) <= _SAME_LOSS * max(abs(found), 1e-3):
        return judge
    eager = sum(same.value())
    if subject.passes.model is not model and abs(eager - wanted) > _SAME_LOSS * abs(eager):
        findings.append(
            f"The model as it is wrapped has the loss {wanted:.6g}, and the module inside "
            f"{eager:.6g}: a compiled graph that computes something else, or, where there is "
            "dropout, draws other random numbers (then check in eval mode)."
        )
    else:
        findings.append(
            f"The loss is {wanted:.6g}, and that of a float64 copy {found:.6g}: the comparison is "
            "made in the model's own precision, and coarse at kinks of the network."
        )
    return same


def _errors(
    judge: Subject, whole: dict[str, Tensor], cross_entropy: dict[str, Tensor], directions: int
) -> tuple[float, float, float]:
    """Relative errors of the regularizer's and the cross-entropy's part, and the former's size.

    Random directions, each parameter moved in proportion to its own size: the mean squared error
    of the derivatives along them is that of the gradient.
    """
    parameters = judge.parameters()
    step = _STEP[torch.float64 if judge.inputs.dtype == torch.float64 else torch.float32]
    generator = torch.Generator().manual_seed(judge.seed)
    squared = torch.zeros(4, dtype=torch.float64)
    with torch.autocast(judge.inputs.device.type, enabled=False):
        for _ in range(directions):
            moves = {}
            for name, p in parameters.items():
                size = float(p.detach().abs().square().mean().sqrt()) or 1e-2
                dtype = torch.complex128 if p.is_complex() else torch.float64
                noise = torch.randn(p.shape, generator=generator, dtype=dtype)
                moves[name] = (size * noise).to(p.device)
            up, down = (_moved(judge, moves, sign * step) for sign in (1, -1))
            numeric = [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]
            along = [
                sum(_derivative(g[name], move) for name, move in moves.items())
                for g in (whole, cross_entropy)
            ]
            found = [along[0] - along[1], along[1]]
            errors = [(a - b) ** 2 for a, b in zip(found, numeric, strict=True)]
            sizes = [value**2 for value in numeric]
            pairs = [errors[0], sizes[0], errors[1], sizes[1]]
            squared += torch.tensor(pairs, dtype=torch.float64)
    margin, of_margin, ce, of_ce = (squared / directions).sqrt().tolist()
    # Below this, what is left of the regularizer is the rounding of the loss.
    size = of_margin if of_margin > _ROUNDING * of_ce else 0.0
    return margin / max(of_margin, _TINY), ce / max(of_ce, _TINY), size


def _double_copy(model: nn.Module) -> nn.Module:
    twin: nn.Module = copy.deepcopy(model)
    for parameter in twin.parameters():
        if not parameter.is_leaf:  # as those of a scripted module's copy
            parameter.detach_().requires_grad_()
    twin._apply(_double)
    return twin


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _derivative(gradient: Tensor, move: Tensor) -> float:
    """Along a move of a parameter, whose real and imaginary part move by themselves."""
    return float((_double(gradient).conj() * move).sum().real)


def _moved(judge: Subject, moves: dict[str, Tensor], factor: float) -> tuple[float, float]:
    parameters = judge.parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.data.copy_(_double(before[name]) + factor * moves[name])
    try:
        return judge.value()
    finally:
        for name, p in parameters.items():
            p.data.copy_(before[name])


def _kinked(judge: Subject) -> bool:
    return any(isinstance(layer, _KINKED) for layer in _bare(judge.passes.model).modules())


def _error_of(judge: Subject, mode: GradientMode) -> float:
    """The error by another mode; NaN where it says little."""
    if judge.inputs.dtype != torch.float64 or _kinked(judge):
        return math.nan
    # The places for passes in the backward are as many as those of the mode that is checked.
    passes = replace(judge.passes, reruns=mode.reruns, deferred=False)
    judge = replace(judge, passes=passes)
    return _errors(judge, *judge.gradients(mode), 4)[0]
