"""The fused loss writes a gradient by the input gradient [B, D] only where somebody reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from margin_ext import AverageMarginLoss
from margin_ext._extension import cpu_library

pytestmark = pytest.mark.skipif(not cpu_library.loaded, reason="no CPU library")


class Written(TorchDispatchMode):
    """The sizes of the gradients by logits and by grad, of every call of the fused loss."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.margin_ext.average_margin_loss.default:
            self.sizes.append((out[5].numel(), out[6].numel()))
        return out


@pytest.mark.parametrize(
    ("gradient", "written"),
    [("double_backward", (12, 20)), ("detached", (12, 0)), ("finite_difference", (12, 0))],
)
def test_in_training(gradient, written):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with Written() as seen:
        out = AverageMarginLoss(tau=0.5, gradient=gradient).run(
            model, torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
        )
        out.loss.backward()
    assert seen.sizes == [written]


def test_in_validation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with Written() as seen, torch.no_grad():
        AverageMarginLoss(tau=0.5).run(model, torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    assert [size for _, size in seen.sizes] == [0]
