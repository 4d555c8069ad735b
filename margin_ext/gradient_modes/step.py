"""What a gradient mode works on: one pass through the model, and the means to make another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from margin_ext.functional.labels import Labels
from margin_ext.gradient_modes.deferred_passes import DeferredPasses
from margin_ext.gradient_modes.objective import Objective
from margin_ext.op_results import MarginLoss

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """A pass through the model whose margins enter the loss.

    Attributes:
        objective: The loss.
        inputs: [B, ...], requiring grad.
        logits: [B, C] or [B, C, d1, ...], computed from inputs, with their graph.
        labels: The labels of the logits.
        modules: All modules that the pass has run, of a module or a function, the outermost first;
            none where only the logits are known.
        rerun: Logits of other inputs [B, ...] under the same randomness and without touching the
            running statistics; None where only the logits are known, or the mode needs none.
        batch_dependent: Whether a sample's logits depend on the other samples (BatchNorm in
            training, or found out where the mode ``asks_dependence``); known where rerun is.
        deferred: Where reruns can be put off to the backward.
        repeatable: Whether a rerun on the same inputs gives the same logits.

    Example:
        >>> from margin_ext import AverageMarginLoss, GradientMode
        >>> class Watched(GradientMode):
        ...     def __call__(self, step):
        ...         nearest = step.nearest()
        ...         grad = step.input_gradient(nearest, create_graph=True)
        ...         print(step.logits.shape, grad.shape)
        ...         return step.loss(grad, nearest)
        >>> criterion = AverageMarginLoss(gradient=Watched())
        >>> out = criterion.run(torch.nn.Linear(4, 3), torch.ones(2, 4), torch.tensor([0, 2]))
        torch.Size([2, 3]) torch.Size([2, 4])
    """

    objective: Objective
    inputs: Tensor
    logits: Tensor
    labels: Labels
    modules: Sequence[nn.Module] = ()
    rerun: Callable[[Tensor], Tensor] | None = None
    batch_dependent: bool = False
    deferred: DeferredPasses | None = None
    repeatable: bool = True

    def nearest(self) -> Any:
        """What the gap of each sample is measured to."""
        return self.objective.nearest(self.logits, self.inputs, self.labels)

    def input_gradient(self, nearest: Any, *, create_graph: bool) -> Tensor:
        """Gradient of every sample's gap by its input, of the shape and type of inputs."""
        return self.objective.input_gradient(
            self.logits, self.inputs, self.labels, nearest, create_graph=create_graph
        )

    def loss(self, grad: Tensor, nearest: Any) -> MarginLoss:
        """The loss with input gradients grad [B, ...], differentiable in them and the logits."""
        return self.objective.loss(self.logits, self.labels, grad, nearest)

    def needs_model(self, setting: str, use: str) -> Callable[[Tensor], Tensor]:
        """The rerun.

        Raises:
            ValueError: Only the logits are known.
            RuntimeError: The model is not the same in a further pass.
        """
        if self.rerun is None:
            raise ValueError(
                f"{setting} runs the model at {use} inputs: call criterion.run(model, inputs, "
                "target) in place of criterion(logits, target, inputs)"
            )
        if not self.repeatable:
            raise RuntimeError(
                f"{setting} compares passes at {use} inputs, but the model gives other logits "
                "when it runs again on the same inputs, although the random states of torch, "
                "random, numpy and the layers' own generators were restored: it draws random "
                "numbers elsewhere (a generator that no layer holds, another thread, the time), or "
                "changes a state that is not in buffers. Draw from torch, keep the state in "
                'buffers, or take gradient="double_backward" or "detached"'
            )
        return self.rerun
