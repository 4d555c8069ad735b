"""The leaves that a tensor was computed from."""

from __future__ import annotations

from torch import Tensor

__all__ = ["graph_leaves"]


def graph_leaves(tensor: Tensor, stop: Tensor | None = None) -> list[Tensor]:
    """The tensors that a backward through this one would leave gradients in.

    What lies behind ``stop`` alone is left out.
    """
    nodes, leaves = [tensor.grad_fn], []
    seen = {tensor.grad_fn, None if stop is None else stop.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.append(leaf)
        following = {next_node for next_node, _ in node.next_functions} - seen
        seen |= following
        nodes.extend(following)
    return leaves
