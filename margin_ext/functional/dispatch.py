"""Whether a call goes to the compiled ops, and the reference for calls that do not.

No other module of the package imports the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext import reference as fallback
from margin_ext._extension import cpu_library, ops_available
from margin_ext.accumulation import accumulation_dtype
from margin_ext.fake_kernels import register_fake_kernels
from margin_ext.input_std import InputStd, channel_scale

__all__ = [
    "compiled_for",
    "fallback",
    "flat_channel_scale",
    "match_accumulation",
]

if cpu_library.loaded:
    register_fake_kernels()


def compiled_for(tensor: Tensor) -> bool:
    """Whether the compiled ops take this tensor.

    They do not under a torch.func transform, whose tensors stand for batches or tangents that a
    compiled kernel cannot see. The reference consists of torch's own functions, which can.
    """
    kind = "cpu" if tensor.is_cpu else tensor.device.type
    return ops_available(kind) and not torch._C._are_functorch_transforms_active()


def flat_channel_scale(input_std: InputStd, grad: Tensor) -> Tensor | None:
    """1 / input_std as the ops take it: [1] or [Ch]."""
    return None if input_std is None else channel_scale(input_std, grad).reshape(-1)


def match_accumulation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in float64 if one of them is; otherwise as they are."""
    if accumulation_dtype(a, b) == torch.float64:
        return a.to(torch.float64), b.to(torch.float64)
    return a, b
