"""The implementations of the ops, behind one interface: tests are written once over them.

Every backend has the functions of ``margin_ext.functional`` and places tensors where it computes.
To add one: a module here that makes a ``Backend``, and a line in ``BACKENDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from backends import simt
from margin_ext import functional, reference
from margin_ext._extension import cpu_library, cuda_library, ops_available

__all__ = ["BACKENDS", "CPU", "CUDA", "EMULATOR", "REFERENCE", "Backend"]


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


class _Emulated:
    """The package's functions with the emulator's ops; what autograd calls later are the CPU's."""

    NAMES = (
        "logit_gap",
        "first_order_margin",
        "dual_direction",
        "class_margins",
        "attack_step",
        "average_margin_loss",
    )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            emulated = {op: getattr(simt.Simt(), op) for op in self.NAMES}
            with mock.patch.multiple(torch.ops.margin_ext, **emulated):
                return getattr(functional, name)(*arguments, **options)

        return call


def _no_emulator() -> str | None:
    return _no_cpu_library() or simt.missing()


REFERENCE = Backend("reference", reference, "cpu", lambda: None)
CPU = Backend("cpu", functional, "cpu", _no_cpu_library)
CUDA = Backend("cuda", functional, "cuda", _no_cuda_library)

# It takes its time, so only some tests have it: what no random problem reaches.
EMULATOR = Backend("emulator", _Emulated(), "cpu", _no_emulator)

BACKENDS = (REFERENCE, CPU, CUDA)
