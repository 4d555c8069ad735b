"""The orthogonality penalty on weight matrices (arXiv 1907.11780, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["orthogonality_penalty"]


def orthogonality_penalty(model: nn.Module | Iterable[Tensor]) -> Tensor:
    """Sum over weight matrices W of ||W W^T - I||_F^2, by the smaller Gram matrix.

    Arguments and result are those of :func:`margin_ext.orthogonality_penalty`.

    Example:
        >>> orthogonality_penalty([torch.eye(3), 2 * torch.eye(2)])
        tensor(18.)
    """
    weights = model.parameters() if isinstance(model, nn.Module) else model
    total = torch.zeros(())
    for weight in weights:
        if weight.dim() >= 2:
            rows = weight.flatten(1)
            short = rows if len(rows) <= rows.shape[1] else rows.T
            distance = torch.einsum("ik,jk->ij", short, short).clone()
            distance.diagonal().sub_(1)
            total = total.to(weight) + distance.square().sum()
    return total
