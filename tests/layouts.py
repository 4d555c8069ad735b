"""Ways in which the same numbers [B, ...] may lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DENSE", "NOT_DENSE", "lay_out"]


def _offset(x: Tensor) -> Tensor:
    """Its first element one element past an allocation's start: aligned to nothing wider."""
    storage = x.new_empty(x.numel() + 1)
    return storage[1:].view(x.shape).copy_(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _reversed(x: Tensor) -> Tensor:
    """Dimensions of a sample in reversed order of memory."""
    order = [0, *range(x.dim() - 1, 0, -1)]
    return x.permute(order).contiguous().permute(order)


def _gaps_between_samples(x: Tensor) -> Tensor:
    """A batch stride larger than a sample, and odd."""
    size = x[0].numel()
    wide = x.new_full((x.shape[0], size + 3), torch.nan)
    wide[:, :size] = x.flatten(1)
    return wide.as_strided(x.shape, (size + 3, *x.stride()[1:]))


def _batch_innermost(x: Tensor) -> Tensor:
    """Neighbours in memory belong to different samples: no sample is dense."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _every_other(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


# A sample is one block of memory: the kernels read it where it lies and write alike.
DENSE = {
    "contiguous": lambda x: x.contiguous(),
    "offset": _offset,
    "channels_last": _channels_last,
    "reversed": _reversed,
    "gaps_between_samples": _gaps_between_samples,
}
# Copied first.
NOT_DENSE = {"batch_innermost": _batch_innermost, "every_other": _every_other}


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The numbers of contiguous x [B, ...] in another layout."""
    laid: Tensor = {**DENSE, **NOT_DENSE}[layout](x)
    assert torch.equal(laid, x)
    return laid
