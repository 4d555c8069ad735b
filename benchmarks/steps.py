"""A training step of a network of its own, with each of the losses that are compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.step_losses import LOSSES, SECANT
from margin_ext.functional import dispatch
from margin_ext.gradient_modes import gradient_mode_names

REFERENCE = ", reference"
MATH = ", math attention"


@dataclass(frozen=True)
class Precision:
    """How the network runs.

    Attributes:
        name: For the results.
        autocast: Under bf16 autocast.
        compiled: The network under torch.compile.
    """

    name: str
    autocast: bool = False
    compiled: bool = False


def names(with_attention: bool, compiled: bool) -> Iterator[str]:
    """Every way to train: plain first, which the others are compared with."""
    for name in LOSSES:
        yield name
        # The reference is not compiled once more.
        if not compiled and name in (*gradient_mode_names(), SECANT):
            yield name + REFERENCE
    if with_attention and not compiled:
        # Fused attention has no second derivative; torch's unfused one has.
        yield "double_backward" + MATH


class Step:
    """A network of its own, trained with one of the losses."""

    def __init__(
        self, name: str, model: nn.Module, inputs: Tensor, target: Tensor, precision: Precision
    ) -> None:
        self.name = name
        self.model = copy.deepcopy(model)
        self.inputs, self.target = inputs, target
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        network = torch.compile(self.model) if precision.compiled else self.model
        chosen = LOSSES[name.removesuffix(REFERENCE).removesuffix(MATH)]
        self._loss = chosen.build(network)
        self.cycle = chosen.cycle
        self._device = inputs.device.type
        self._autocast = precision.autocast

    def gradients(self) -> None:
        """Leave the parameters' gradients in ``grad``."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._surroundings():
            with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
                loss = self._loss(self.inputs, self.target)
            loss.backward()

    def __call__(self) -> None:
        for _ in range(self.cycle):
            self.gradients()
            self.optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _surroundings(self) -> AbstractContextManager[object]:
        if self.name.endswith(REFERENCE):
            return without_kernels()
        if self.name.endswith(MATH):
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()


@contextmanager
def without_kernels() -> Iterator[None]:
    """As if no library had been built: everything runs on the reference."""
    with mock.patch.object(dispatch, "ops_available", return_value=False):
        yield
