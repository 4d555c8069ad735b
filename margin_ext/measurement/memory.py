"""How many samples fit into a given memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["bytes_per_sample", "parse_memory", "samples_that_fit"]

_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def parse_memory(memory: int | str) -> int:
    """Bytes from a number or from text such as "512MB" or "2 GB" (powers of 1024)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?B?)\s*", str(memory).upper())
    if match is None or match[2] in ("K", "M", "G") or float(match[1]) <= 0:
        raise ValueError(f'max_memory must be bytes or such as "512MB", got {memory!r}')
    return int(float(match[1]) * _UNITS[match[2]])


def bytes_per_sample(model: Model, inputs: Tensor) -> int:
    """Bytes that autograd keeps for a sample, found on the first one or two of inputs [B, ...].

    What does not grow with the batch, such as weights, is not counted.
    """
    sample = inputs[:1].detach()
    sizes = []
    for copies in (1, 2):
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = torch.cat([sample] * copies).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = model(batch)
        sizes.append(sum(kept.values()) + batch.nbytes)
        del graph
    return max(sizes[1] - sizes[0], sample.nbytes)


def samples_that_fit(model: Model, inputs: Tensor, memory: int | str) -> int:
    """Largest batch whose forward and backward pass stay within ``memory`` beside the weights.

    Twice what autograd keeps is allowed for: a backward pass holds gradients of the activations
    beside them, and convolutions need work space.
    """
    return max(1, parse_memory(memory) // (2 * bytes_per_sample(model, inputs)))
