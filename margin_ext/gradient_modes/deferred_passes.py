"""Extra passes that run during backward, after the graph of the step's own pass has been freed.

The extra passes contribute only gradients, so they can run during backward. Among the nodes that
are ready, autograd runs the one that was created last. A node that was created before a pass
therefore runs after all nodes of that pass, and each of those has freed its saved tensors. So the
graphs of the two passes are never in memory at the same time. (Under fraction < 1 or
batchnorm="running" the cross-entropy has a pass of its own, whose graph stays meanwhile.)
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
    """Inputs that have a graph, to which the gradients of moved inputs are passed on."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self._end = inputs

    def move(self, moved: Tensor) -> Tensor:
        """Moved inputs with a graph that leads to the inputs; the displacement is constant."""
        return moved + (self._end - self._end.detach())

    @contextmanager
    def ending(self) -> Iterator[Tensor]:
        """Let graphs end at a leaf instead of the inputs.

        The graph behind the inputs may contain parameters of the model, and may be freed already.
        """
        self._end = self.inputs.detach().requires_grad_()
        try:
            yield self._end
        finally:
            self._end = self.inputs


@dataclass
class _Work:
    """The work of a node; it must not refer to the graph that has to be freed before it runs.

    Attributes:
        parameters: The tensors that get gradients: the model's parameters and, with a ``source``,
            the inputs as the last one.
        source: The source of the inputs, if they have a graph; None otherwise.
        job: Makes the pass and returns its value; None once it is done.
        snapshot: The state of the model in which the job has to run.
        refuses_nan: Whether a NaN gradient is an error.
    """

    parameters: list[Tensor]
    source: Source | None = None
    job: Callable[[], Tensor] | None = None
    snapshot: Snapshot | None = None
    refuses_nan: bool = False

    def gradients(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """Run the job: the gradients of all parameters, None where there is none."""
        if self.job is None or self.snapshot is None:
            raise RuntimeError(
                "this loss has been differentiated before: call the first backward with "
                "retain_graph=True"
            )
        found: list[Tensor | None] = [None] * len(self.parameters)
        # A parameter that was frozen in the meantime gets no gradient.
        wanted = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        ends = self.parameters
        with ExitStack() as contexts:
            if self.source is not None:
                ends = [*ends[:-1], contexts.enter_context(self.source.ending())]
            # Checkpointed parts are recomputed while gradients are taken, so they need it too.
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
            # Like autograd, free what was saved: the user may keep the loss for a long time.
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
                "the model reuses a part of its graph from one pass to the next, such as a weight "
                "that is computed once, and the backward of the first pass has freed it. Make all "
                "passes in run(): FiniteDifference(deferred=False)"
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
    """Nodes for later passes, placed in the graph before the step's own pass.

    Each pass has its own node, so that autograd adds up the gradients of one before the next runs.
    """

    model: nn.Module
    inputs: Tensor
    batchnorm: str
    works: list[_Work]
    terms: list[Tensor]
    source: Source | None = None

    def serves(self, logits: Tensor) -> bool:
        """Whether the logits depend on no leaves but the model's parameters and the inputs.

        Gradients of other leaves, such as the parameters of a second model that the first one
        calls, would be lost.
        """
        known = {id(parameter) for parameter in self.works[0].parameters}
        known.add(id(self.inputs))
        stop = None if self.source is None else self.source.inputs
        return all(id(leaf) in known for leaf in graph_leaves(logits, stop))

    def add(self, jobs: Sequence[Callable[[], Tensor]], *, refuse_nan: bool = False) -> Tensor:
        """Zeros whose gradient is that of the sum of the jobs' values.

        Args:
            jobs: One for each node. They run during backward, with the layers' training flags and
                the autocast settings of now. They must not refer to the logits, whose graph would
                then stay in memory until they run.
            refuse_nan: Whether a NaN in their gradients is an error.
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
    """Nodes for later passes, or None where all passes have to be made at once.

    Args:
        model: The module that the passes run.
        inputs: [B, ...], those of the step.
        batchnorm: As in :class:`margin_ext.AverageMarginLoss`.
        shape: Shape of the jobs' values.
        count: The number of jobs.
        source: The source of the inputs, if they have a graph; None otherwise.
    """
    # The parameters of a function are not known. fully_shard gathers and reduces parameters in
    # hooks that expect one backward. DistributedDataParallel(find_unused_parameters=True) expects
    # gradients only for the parameters that the first pass used. A compiled step does not keep the
    # order of nodes.
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
    # A parameter's hooks would see the gradient of the later passes alone, and then again as a part
    # of the sum.
    if not parameters or any(parameter._backward_hooks for parameter in parameters):
        return None
    # Lazy parameters get their shape in the first pass, and the node has to be created before it.
    if any(is_lazy(parameter) for parameter in parameters):
        return None
    if source is not None:
        parameters.append(source.inputs)
    works = [_Work(parameters, source) for _ in range(count)]
    terms = [_Node.apply(work, shape, inputs, *parameters) for work in works]  # type: ignore[no-untyped-call]
    return DeferredPasses(inner, inputs, batchnorm, works, terms, source)
