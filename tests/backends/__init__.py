"""The implementations of the ops, behind one interface: tests are written once over them.

Every backend has the functions of ``margin_ext.functional`` and places tensors where it computes.
To add one: a module here that makes a ``Backend``, and a line in ``BACKENDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margin_ext import functional, reference
from margin_ext._extension import cpu_library, cuda_library, ops_available

__all__ = ["BACKENDS", "CPU", "CUDA", "REFERENCE", "Backend"]


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes:
        name: As it stands in the tests' ids.
        ops: Has logit_gap, first_order_margin, dual_direction and average_margin_loss.
        device: Where its tensors lie.
        missing: Says why it cannot run here; None where it can.
    """

    name: str
    ops: Any
    device: str
    missing: Callable[[], str | None]

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def _no_cpu_library() -> str | None:
    return None if cpu_library.loaded else cpu_library.problem


def _no_cuda_library() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not cuda_library.loaded:
        return f"no CUDA library: {cuda_library.problem}"
    return None if ops_available("cuda") else "the CUDA library has no code for this device"


REFERENCE = Backend("reference", reference, "cpu", lambda: None)
CPU = Backend("cpu", functional, "cpu", _no_cpu_library)
CUDA = Backend("cuda", functional, "cuda", _no_cuda_library)

BACKENDS = (REFERENCE, CPU, CUDA)
