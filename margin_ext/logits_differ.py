"""Whether two passes gave other logits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["differ"]


def differ(one: Tensor, other: Tensor, slack: float = 1.0) -> bool:
    """Whether logits [B, C] or [B, C, d1, ...] differ by more than rounding explains.

    Logits that are infinite or NaN in both are alike.

    Example:
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> differ(z, z * (1 + 1e-6)), differ(z, z * 1.01)
        (False, True)
    """
    if one.shape != other.shape:
        return True
    # Roundings grow through a deep network.
    relative = slack * max(5e-4, 4 * torch.finfo(one.dtype).eps)
    one, other = one.detach().double(), other.detach().double()
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return True
    if not bool(finite.any()):
        return False
    one, other = one[finite], other[finite]
    limit = relative * max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) > limit
