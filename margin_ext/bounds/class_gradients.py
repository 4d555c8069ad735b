"""Input gradients of the gaps to chosen classes, on the samples that still need one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.models.checked_logits import checked_logits, require_graph

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["ClassGradients"]


class ClassGradients:
    """The graph of a forward pass, from which gradients are taken class by class.

    Samples that need no more gradients leave the graph when half of it is idle: the forward pass
    runs again on the rest.

    Attributes:
        logits: Logits of all samples [B, C], without a graph.
        together: How many classes a backward pass can take: 1 once batching has failed.
    """

    def __init__(self, model: Model, inputs: Tensor) -> None:
        """Run the model, in eval mode, on inputs [B, ...]."""
        self._model = model
        self._inputs = inputs.detach()
        self.together = 2**31
        self._run(torch.arange(inputs.shape[0], device=inputs.device))
        self.logits = self._graph[1].detach()

    def _run(self, rows: Tensor) -> None:
        """Make the graph of some samples [n]."""
        # The old one goes before the new one comes.
        self._graph: tuple[Tensor, ...] = ()
        self._rows = rows
        every = rows.shape[0] == self._inputs.shape[0]
        x = (self._inputs if every else self._inputs[rows]).detach().requires_grad_()
        logits = checked_logits(self._model, x)
        require_graph(logits)
        self._graph = x, logits

    def of_gaps(
        self, rows: Tensor, label: Tensor, classes: Tensor, *, last: bool = False
    ) -> Tensor:
        """Gradients of z_label - z_class.

        Args:
            rows: Samples [n], in ascending order.
            label: Theirs [n].
            classes: K for each of them [n, K].
            last: No more gradients will be asked for, so that the graph can go.

        Returns:
            [n, K, ...].
        """
        if 2 * rows.shape[0] <= self._rows.shape[0]:
            self._run(rows)
        logits = self._graph[1]
        place = torch.searchsorted(self._rows, rows)
        cotangent = logits.new_zeros(classes.shape[1], *logits.shape)
        cotangent[:, place, label] = 1.0
        for one, of_one in zip(cotangent, classes.unbind(1), strict=True):
            one[place, of_one] = -1.0
        grads = self._backward(cotangent, last)
        if rows.shape[0] < self._rows.shape[0]:
            grads = grads[:, place]
        return grads.transpose(0, 1)

    def _backward(self, cotangent: Tensor, last: bool) -> Tensor:
        """Input gradients [K, n, ...] for cotangents [K, n, C]."""
        x, logits = self._graph
        if cotangent.shape[0] == 1:
            (grad,) = torch.autograd.grad(logits, x, cotangent[0], retain_graph=not last)
            return grad.unsqueeze(0)
        if self.together > 1:
            try:
                return _batched(logits, x, cotangent)
            except torch.OutOfMemoryError:
                raise
            # Whatever a layer raises whose backward pass cannot be batched.
            except Exception:
                self.together = 1
        return torch.cat([self._backward(one.unsqueeze(0), last=False) for one in cotangent])


def _batched(logits: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # An operation that vmap runs in a loop saves nothing.
        warnings.filterwarnings("error", ".*performance drop because we have not yet.*")
        (grad,) = torch.autograd.grad(
            logits, x, cotangent, retain_graph=True, is_grads_batched=True
        )
    return grad
