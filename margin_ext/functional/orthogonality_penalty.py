"""The orthogonality penalty on weight matrices (arXiv 1907.11780, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["orthogonality_penalty"]


def orthogonality_penalty(model: nn.Module | Iterable[Tensor]) -> Tensor:
    """Sum over weight matrices W of ||W W^T - I||_F^2, convolutions viewed as [out, -1].

    The smaller Gram matrix is taken: W^T W where W has more rows than columns, since W W^T cannot
    be the identity there. Each weight counts once. (The authors' code counts the weight before
    each bias twice, so in a network with biases their beta corresponds to 2 * beta here.)

    Args:
        model: A module, whose parameters with two or more dimensions are taken (biases and
            normalisation layers have one), or the weights themselves.

    Returns:
        Scalar; 0 where there is no weight matrix.

    Example:
        >>> orthogonality_penalty([torch.eye(3), 2 * torch.eye(2)])
        tensor(18.)
    """
    weights = model.parameters() if isinstance(model, nn.Module) else model
    total: Tensor | None = None
    for weight in weights:
        if weight.dim() < 2:
            continue
        matrix = weight.flatten(1)
        if matrix.shape[0] > matrix.shape[1]:
            matrix = matrix.t()
        gram = matrix @ matrix.t()
        identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        term = (gram - identity).square().sum()
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total
