"""A hash of what a module has learned."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.models.parameter_values import require_values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["model_digest", "tensor_bytes"]


def model_digest(*modules: nn.Module) -> str:
    """Hash of the modules' parameters and buffers.

    Buffers that a state dict leaves out count as well: they change what the module computes. The
    hash of a model that is split over ranks is that of the whole one; all ranks have to ask for it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for inner in module.modules():
            require_values(inner)
        for name, tensor in sorted(_tensors(module)):
            digest.update(name.encode())
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            whole = getattr(tensor, "full_tensor", None)  # of a DTensor
            # A copy: numpy locks the storage, and fully_shard could not free it any more.
            digest.update(tensor_bytes(tensor.detach().clone() if whole is None else whole()))
    return digest.hexdigest()


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # A module of fully_shard takes itself apart again when it is asked for its state dict.
    if any(hasattr(inner, "_get_fsdp_state") for inner in module.modules()):
        return own.items()
    # State dicts may hold more, such as the packed weights of quantized layers.
    own.update({n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)})
    return own.items()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values' bytes in order, without a copy where the tensor is on the CPU."""
    flat = tensor.detach().cpu().contiguous().flatten()
    # Through uint8, because numpy has no bfloat16.
    return memoryview(flat.view(dtype=torch.uint8).numpy().data if flat.numel() else b"")
