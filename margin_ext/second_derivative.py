"""Whether an input gradient can be differentiated once more: all of it, and not a part in silence.

An input gradient is linear in the cotangent it was computed from. So where the cotangent requires
grad, the gradient of every honest operation has a graph that leads back to it. An operation whose
backward returns tensors without a graph (adjoint solvers of differential equations, torch.cond,
older custom functions) breaks that path: what lies behind it would be missing from the second
derivative, without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

__all__ = [
    "SecondDerivativeError",
    "custom_functions",
    "operations_watched",
    "refuse_missing_derivatives",
    "require_path",
]

_ADVICE: Final = (
    'Take gradient="finite_difference" with criterion.run(model, inputs, target), which needs no '
    'second derivative, or "auto", which finds this out; or gradient="detached"'
)
# Nodes that raise when they run, which is in the backward of the loss.
_RAISING: Final = ("torch::autograd::NotImplemented", "torch::autograd::Error")


class SecondDerivativeError(RuntimeError):
    """The model cannot be differentiated twice."""


def require_path(grad: Tensor, cotangent: Tensor, logits: Tensor) -> None:
    """Require that the graph of an input gradient leads back to the cotangent; cheap where it does.

    Raises:
        SecondDerivativeError: It does not.
    """
    if torch._C._are_functorch_transforms_active() or _leads_to(grad, [cotangent]):
        return
    if not grad.numel() or not bool(grad.detach().any()):
        return  # a constant of 0, such as the gradient of a rounding
    raise SecondDerivativeError(_lost(custom_functions(logits), _words_in(grad)))


@contextmanager
def operations_watched(logits: Tensor, inputs: Tensor) -> Iterator[None]:
    """Take an input gradient with create_graph, and look at operations that torch did not write.

    A path around an operation, such as a skip connection, hides it from :func:`require_path`.

    Raises:
        SecondDerivativeError: One of them returned a gradient without a graph.
    """
    lost: list[str] = []
    words: list[str] = []

    def look(node: Any, into_inputs: list[bool]) -> Any:
        def hook(grads: Sequence[Tensor | None], upstream: Sequence[Tensor | None]) -> None:
            origins = [u for u in upstream if u is not None and u.requires_grad]
            for grad, counts in zip(grads, into_inputs, strict=False):
                if grad is None or not counts or not origins or _leads_to(grad, origins):
                    continue
                if bool(grad.detach().any()):
                    lost.append(_name(node))
                    words.append(_words_in(grad))

        return hook

    handles = []
    for node in _custom_nodes(logits):
        reaching = [_reaches(following, inputs) for following, _ in node.next_functions]
        if any(reaching):
            handles.append(node.register_hook(look(node, reaching)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if lost:
        raise SecondDerivativeError(_lost(sorted(set(lost)), next(filter(None, words), "")))


def refuse_missing_derivatives(grad: Tensor) -> None:
    """Raise where an operation has no second derivative, which torch would say in the backward.

    Raises:
        SecondDerivativeError: There is one, in torch's words, and what to do.
    """
    if words := _words_in(grad):
        raise SecondDerivativeError(f"the model cannot be differentiated twice: {words}. {_ADVICE}")


def custom_functions(logits: Tensor) -> list[str]:
    """Names of the operations before the logits that torch did not write."""
    return sorted({_name(node) for node in _custom_nodes(logits)})


def _lost(names: list[str], words: str) -> str:
    where = f" in {', '.join(names)}" if names else ""
    because = f" ({words})" if words else ", which has a backward that returns tensors without one"
    return (
        f"the graph of the input gradient is lost{where}{because}: a part of the second derivative "
        f"would be missing, without an error. {_ADVICE}"
    )


def _name(node: Any) -> str:
    return str(node.name()).removesuffix("Backward")


def _custom_nodes(logits: Tensor) -> list[Any]:
    return [node for node in _nodes(logits.grad_fn) if _is_custom(node)]


def _is_custom(node: Any) -> bool:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return True
    return "CppNode" in node.name()  # a torch::autograd::Function in C++


def _nodes(root: Any) -> Iterator[Any]:
    """All nodes of a graph, each once; along the first edges first."""
    stack, seen = [root], {root, None}
    while stack:
        node = stack.pop()
        if node is None:
            continue
        yield node
        for following, _ in reversed(node.next_functions):
            if following not in seen:
                seen.add(following)
                stack.append(following)


def _leads_to(tensor: Tensor, origins: Sequence[Tensor]) -> bool:
    if any(tensor is origin for origin in origins):
        return True
    # The gradient that comes in is the first input of nearly every node: this ends soon.
    ends = {origin.grad_fn for origin in origins} - {None}
    leaves = {id(origin) for origin in origins if origin.grad_fn is None}
    return any(
        node in ends or id(getattr(node, "variable", None)) in leaves
        for node in _nodes(tensor.grad_fn)
    )


def _reaches(node: Any, inputs: Tensor) -> bool:
    own = inputs.grad_fn
    return any(
        found is own if own is not None else getattr(found, "variable", None) is inputs
        for found in _nodes(node)
    )


def _words_in(grad: Tensor) -> str:
    """What the first node that raises would say; empty where there is none."""
    for node in _nodes(grad.grad_fn):
        if node.name() in _RAISING:
            try:
                node(*[torch.zeros(())] * len(node._input_metadata))
            except RuntimeError as error:
                return str(error).strip().split("\n")[0]
    return ""
