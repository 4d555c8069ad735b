"""Which models count as affine, so that their first-order margins are exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from margin_ext import measure
from margin_ext.bounds import Certified
from margin_ext.bounds.linear import is_linear
from margin_ext.threat import ThreatModel
from measurement.training_mode import CLASSES, COMPILES, DIMS, labelled, normalised_linear


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output.abs())


def patched(layer: nn.Module) -> None:
    layer.forward = lambda x: x.abs()  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, patched])
@pytest.mark.parametrize("at", [0, 1, None])
def test_layers_that_do_more_are_neither_exact_nor_certified(
    change: Callable[[nn.Module], None], at: int | None
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(DIMS, CLASSES)).double()
    data = labelled(net)
    assert is_linear(net)
    change(net if at is None else net[at])
    assert not is_linear(net)
    if change is hooked:
        assert not measure(net, data).exact
    x, y = data
    with pytest.raises(TypeError, match=r"has hooks|is replaced"):
        Certified()(net, x, y, threat=ThreatModel())


def test_hooks_on_all_modules_and_patched_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES)).double()
    handle = register_module_forward_hook(lambda module, inputs, output: 2 * output)
    assert not is_linear(net)
    handle.remove()
    assert is_linear(net)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x[:, :CLASSES].abs())
    assert not is_linear(net)
    with pytest.raises(TypeError, match="forward of a Linear is replaced"):
        Certified()(net, torch.rand(1, DIMS), torch.tensor([0]), threat=ThreatModel())


@COMPILES
def test_wrappers_are_looked_through_for_exactness() -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES)).double()
    assert is_linear(torch.compile(net))
    assert is_linear(nn.DataParallel(net))


def test_an_affine_model_in_training_mode_is_exact() -> None:
    net = nn.Sequential(nn.Dropout(0.5), *normalised_linear()).train()
    report = measure(net, labelled(net))
    assert report.exact
    assert not is_linear(net)
    assert is_linear(net.eval())
