"""One training step with each of the losses that are compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from margin_ext import AverageMarginLoss
from margin_ext.attacks.pgd import attack_gradient
from margin_ext.functional import dispatch
from margin_ext.gradient_modes import gradient_mode_names
from margin_ext.threat import ThreatModel

PLAIN = "plain"
SECANT = "secant"
PGD = "pgd_7"
REFERENCE = ", reference"
MATH = ", math attention"
_PGD_STEPS = 7
_PGD_EPS = 8 / 255


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


def names(with_attention: bool) -> Iterator[str]:
    """Every way to train: plain first, which the others are compared with."""
    yield PLAIN
    for mode in (*gradient_mode_names(), SECANT):
        yield mode
        yield mode + REFERENCE
    if with_attention:
        # Fused attention has no second derivative; torch's unfused one has.
        yield "double_backward" + MATH
    yield PGD


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
        mode = name.removesuffix(REFERENCE).removesuffix(MATH)
        self._loss = _loss(mode, network)
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


def _loss(mode: str, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    if mode == PLAIN:
        return lambda inputs, target: cross_entropy(model(inputs), target)
    if mode == PGD:
        return lambda inputs, target: cross_entropy(
            model(_adversarial(model, inputs, target)), target
        )
    options = {"margin": SECANT} if mode == SECANT else {"gradient": mode}
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, **options)
    return lambda inputs, target: criterion.run(model, inputs, target).loss


def _adversarial(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """Madry et al.'s inner loop in the l_inf ball: every sample takes all steps."""
    threat = ThreatModel(p=math.inf)
    eps = inputs.new_full(inputs.shape[:1], _PGD_EPS)
    x = inputs + torch.empty_like(inputs).uniform_(-_PGD_EPS, _PGD_EPS)
    for _ in range(_PGD_STEPS):
        _, grad = attack_gradient(model, x, target, "cross_entropy")
        x = threat.attack_step(x, grad, eps * (2.5 / _PGD_STEPS), center=inputs, radius=eps)
    return x
