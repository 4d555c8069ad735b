"""Exact margins of a linear classifier (arXiv 1907.11780, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext.norms import dual_exponent

__all__ = ["linear_margin"]


def linear_margin(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, target: Tensor, *, p: float | str = 2
) -> Tensor:
    """Signed l_p distance to the boundary of z = W x + b, the minimum over the classes k.

    Arguments and result are those of :func:`margin_ext.linear_margin`.

    Example:
        >>> linear_margin(torch.eye(2), None, torch.tensor([[3.0, 1.0]]), torch.tensor([0]), p=1)
        tensor([2.])
    """
    x = inputs.flatten(1)
    z = x @ weight.t() + (0 if bias is None else bias)
    rows = torch.arange(len(z), device=z.device)
    margins = []
    for k in range(len(weight)):
        norm = torch.linalg.vector_norm(weight[target] - weight[k], dual_exponent(p), dim=1)
        margins.append(torch.where(target == k, torch.inf, (z[rows, target] - z[:, k]) / norm))
    return torch.stack(margins).amin(0)
