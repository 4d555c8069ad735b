"""Dual norms of input gradients through the fused op."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin_ext.functional import first_order_margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["gradient_norm"]


def gradient_norm(
    grad: Tensor, *, p: float = 2, input_std: float | Sequence[float] | Tensor | None = None
) -> Tensor:
    """||grad_i||_q of every sample [B], in pixel units with input_std."""
    return first_order_margin(
        grad.new_ones(grad.shape[0]), grad, p=p, eps=1.0, input_std=input_std
    ).norm
