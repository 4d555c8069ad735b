"""How many samples fit into a given memory."""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from margin_ext.bounds.logit_derivatives import forward_mode

if TYPE_CHECKING:
    from margin_ext.models.evaluation_mode import Model

__all__ = ["PeakMemory", "parse_memory", "rows_that_fit", "samples_that_fit"]

_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
# Work space of kernels that allocate it where PyTorch does not see it.
_UNSEEN = 1.25
# Copies of the inputs that a search holds: points, gradients, the best point so far.
_COPIES = 8


def parse_memory(memory: Any) -> int:
    """Bytes from a number or from text such as "512MB" or "2 GB" (powers of 1024).

    Example:
        >>> parse_memory("2 GB") == 2 * 1024**3
        True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:E\d+)?)\s*([KMGT]?B?)\s*", str(memory).upper())
    if match is None or match[2] in ("K", "M", "G", "T") or float(match[1]) <= 0:
        raise ValueError(f'max_memory must be bytes or such as "512MB", got {memory!r}')
    return int(float(match[1]) * _UNITS[match[2]])


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside, while they live.

    Attributes:
        live: Bytes now.
        peak: The most at any time.

    Example:
        >>> with PeakMemory() as memory:
        ...     _ = (torch.zeros(256) + 1).sum()
        >>> memory.peak >= 2048
        True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _counts(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if _counts(tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._watch(storage)
        return out

    def _watch(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _counts(thing: Any) -> bool:
    return isinstance(thing, Tensor) and thing.layout == torch.strided


def samples_that_fit(model: Model, inputs: Tensor, memory: Any, a_class: int = 0) -> int:
    """Largest batch whose forward and backward pass stay within ``memory``, without the weights.

    Found by running one and two of the samples.

    Args:
        model: In evaluation mode.
        inputs: [B, ...], the first samples.
        memory: Bytes, or such as "2GB".
        a_class: Bytes that the caller holds for each class of a sample.
    """
    allowed = parse_memory(memory) / _UNSEEN
    sample = inputs[:1].detach()
    one, two = (_peak(model, torch.cat([sample] * copies)) for copies in (1, 2))
    a_sample = max(two - one, sample.nbytes) + _COPIES * sample.nbytes
    if a_class:
        with torch.no_grad():
            a_sample += a_class * model(sample).shape[1]
    always = max(one - (two - one), 0)
    return max(1, int((allowed - always) // a_sample))


def rows_that_fit(model: Model, inputs: Tensor, held: int, *, memory: Any) -> int:
    """Samples times directions whose derivatives can be computed at once within ``memory``.

    Args:
        model: In evaluation mode.
        inputs: [B, ...], the first samples.
        held: Bytes for each sample that hold what was computed.
        memory: Bytes, or such as "2GB".
    """
    allowed = parse_memory(memory) / _UNSEEN
    sample = inputs[:1].detach()
    with PeakMemory() as one:
        try:
            forward_mode(model, sample, sample.clone())
        # By differences, whose forward passes need less than one with a graph.
        except Exception:
            return samples_that_fit(model, inputs, memory)
    return max(1, int(allowed // (one.peak + _COPIES * sample.nbytes + held)))


def _peak(model: Model, batch: Tensor) -> int:
    x = batch.requires_grad_()
    with PeakMemory() as memory:
        logits = model(x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x)
    return int(memory.peak)
