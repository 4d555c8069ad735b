"""Passes that are made in the backward, when the graph of the step's own pass is gone.

The extra passes contribute only gradients, so they run during backward. Among the nodes that are
ready, autograd runs the one created last: a node created before a pass runs after all nodes of the
pass, each of which has freed what it had saved. So the graphs of these two passes never live at
once. (A cross-entropy with a pass of its own, under fraction < 1 or batchnorm="running", is made
before and keeps its graph meanwhile.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from margin_ext.accumulation import accumulation_dtype
from margin_ext.gradient_modes.compiled import kept_for_two_gradients
from margin_ext.gradient_modes.domain import refuse_nan_gradients
from margin_ext.gradient_modes.graph_leaves import graph_leaves
from margin_ext.gradient_modes.parallel import finds_unused_parameters, is_sharded, without_ddp
from margin_ext.gradient_modes.snapshot import Snapshot

__all__ = ["DeferredPasses", "Source", "deferred_passes"]


class Source:
    """Inputs that have a graph: moved inputs move with them."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self._end = inputs

    def move(self, moved: Tensor) -> Tensor:
        """Moved inputs with a graph that leads to the inputs; how far they were moved is fixed."""
        return moved + (self._end - self._end.detach())

    @contextmanager
    def ending(self) -> Iterator[Tensor]:
        """Let graphs end at a leaf in place of the inputs.

        What lies behind the inputs may hold parameters of the model, and may have been used up.
        """
        self._end = self.inputs.detach().requires_grad_()
        try:
            yield self._end
        finally:
            self._end = self.inputs


@dataclass
class _Work:
    """What a node has to do; nothing in it holds the graph that it waits for.

    ``parameters`` are what it finds gradients for: the model's, and at the end the inputs, where
    they have a ``source``.
    """

    parameters: list[Tensor]
    source: Source | None = None
    job: Callable[[], Tensor] | None = None
    snapshot: Snapshot | None = None
    refuses_nan: bool = False

    def gradients(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """Those of all parameters."""
        if self.job is None or self.snapshot is None:
            raise RuntimeError(
                "this loss has been differentiated before: the first time needs retain_graph=True"
            )
        found: list[Tensor | None] = [None] * len(self.parameters)
        # One that was frozen since has no gradient.
        wanted = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        ends = self.parameters
        with ExitStack() as contexts:
            if self.source is not None:
                ends = [*ends[:-1], contexts.enter_context(self.source.ending())]
            # Checkpointed parts are computed again while gradients are taken, and need it all too.
            contexts.enter_context(self.snapshot.restored())
            contexts.enter_context(kept_for_two_gradients())
            with torch.enable_grad():
                value = self.job()
            if value.requires_grad and wanted:
                gradients = self._through(value, [ends[i] for i in wanted], upstream)
                if self.refuses_nan:
                    refuse_nan_gradients(gradients, upstream)
                for i, gradient in zip(wanted, gradients, strict=True):
                    found[i] = gradient
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            # As autograd frees what it has saved: the loss may be kept for a long time.
            self.job = self.snapshot = None
        return found

    @staticmethod
    def _through(
        value: Tensor, parameters: Sequence[Tensor], upstream: Tensor
    ) -> Sequence[Tensor | None]:
        try:
            return torch.autograd.grad(
                value, parameters, upstream.to(value.dtype), allow_unused=True
            )
        except RuntimeError as error:
            if "through the graph a second time" not in str(error):
                raise
            raise RuntimeError(
                "the model keeps a part of its graph from one pass to the next, such as a weight "
                "computed once, and the first pass's backward has used it up. Make all passes in "
                "run(): FiniteDifference(deferred=False)"
            ) from error


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Work, shape: tuple[int, ...], inputs: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.work = work
        return inputs.new_zeros(shape, dtype=accumulation_dtype(inputs, *parameters))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backward(create_graph=True) through finite differences: passes made in the "
                "backward leave no graph. Make them in run(): FiniteDifference(deferred=False)"
            )
        return None, None, None, *ctx.work.gradients(upstream)


@dataclass(frozen=True)
class DeferredPasses:
    """Places in the graph for passes to come; made before the step's own pass.

    Each has a node of its own, so that autograd adds up the gradients of one before the next.
    """

    model: nn.Module
    inputs: Tensor
    batchnorm: str
    works: list[_Work]
    terms: list[Tensor]
    source: Source | None = None

    def serves(self, logits: Tensor) -> bool:
        """Whether the model's parameters are all that a pass like that of the logits moves.

        Gradients of other tensors, such as the parameters of a second model that the first one
        calls, would be lost.
        """
        known = {id(parameter) for parameter in self.works[0].parameters}
        known.add(id(self.inputs))
        stop = None if self.source is None else self.source.inputs
        return all(id(leaf) in known for leaf in graph_leaves(logits, stop))

    def add(self, jobs: Sequence[Callable[[], Tensor]], *, refuse_nan: bool = False) -> Tensor:
        """Zeros with the gradient of the sum of the jobs' values.

        The jobs, as many as there are places, run in the backward, with the layers' modes and the
        autocast settings of now. They must not hold the logits, whose graph would live as long.
        With refuse_nan a NaN in their gradients is an error.
        """
        snapshot = Snapshot(self.model, self.inputs, self.batchnorm)
        for work, job in zip(self.works, jobs, strict=True):
            work.job, work.snapshot, work.refuses_nan = job, snapshot, refuse_nan
        return sum(self.terms[1:], self.terms[0])


def deferred_passes(
    model: object,
    inputs: Tensor,
    batchnorm: str,
    shape: tuple[int, ...],
    count: int,
    *,
    source: Source | None = None,
) -> DeferredPasses | None:
    """Places for passes, or None where passes have to be made at once.

    Args:
        model: What will be run.
        inputs: What it will be run on, [B, ...].
        batchnorm: As in :class:`margin_ext.AverageMarginLoss`.
        shape: Of the jobs' values.
        count: How many jobs there will be.
        source: Of inputs that have a graph.
    """
    # A function's parameters are not known. fully_shard gathers and reduces parameters at hooks
    # that expect one backward. With find_unused_parameters DistributedDataParallel knows which
    # parameters the first pass alone uses, and takes an edge to another for a second gradient. A
    # traced step has no order of nodes.
    if (
        not isinstance(model, nn.Module)
        or not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or is_sharded(model)
        or finds_unused_parameters(model)
    ):
        return None
    inner = without_ddp(model)
    parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    # A parameter's own hooks would see the gradient of the later passes by itself, and then once
    # more as a part of the sum.
    if not parameters or any(parameter._backward_hooks for parameter in parameters):
        return None
    # They take their shape in the first pass, which the node has to come before.
    if any(is_lazy(parameter) for parameter in parameters):
        return None
    if source is not None:
        parameters.append(source.inputs)
    works = [_Work(parameters, source) for _ in range(count)]
    terms = [_Node.apply(work, shape, inputs, *parameters) for work in works]  # type: ignore[no-untyped-call]
    return DeferredPasses(inner, inputs, batchnorm, works, terms, source)
