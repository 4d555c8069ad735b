"""Margins of several hidden layers at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss


def activations():
    first = nn.Sequential(nn.Linear(12, 8), nn.Tanh()).double()
    second = nn.Sequential(nn.Linear(8, 6), nn.Tanh()).double()
    head = nn.Linear(6, CLASSES).double()
    x = torch.randn(5, 12).double().requires_grad_()
    h1 = first(x)
    h2 = second(h1)
    parameters = [*first.parameters(), *second.parameters(), *head.parameters()]
    return [x, h1, h2], head(h2), torch.randint(0, CLASSES, (5,)), parameters


@pytest.mark.parametrize("mode", ["double_backward", "detached"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.1]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_sum_over_layers(mode, weights, reduction):
    layers, logits, target, parameters = activations()
    settings = {"regularizer": "softplus", "reduction": reduction}
    plain = AverageMarginLoss(mu=0.0, margin="logit_gap", **settings)(logits, target)
    settings["gradient"] = mode
    criterion = AverageMarginLoss(**settings)
    wanted = plain
    for weight, layer in zip(weights or [1 / 3] * 3, layers, strict=True):
        wanted = wanted + weight * (criterion(logits, target, layer) - plain)
    alone = AverageMarginLoss(**settings)
    alone(logits, target, layers[0])
    found = criterion(logits, target, layers, layer_weights=weights)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found.sum(), parameters, retain_graph=True),
        torch.autograd.grad(wanted.sum(), parameters, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert torch.equal(criterion.statistics.average_margin, alone.statistics.average_margin)


def test_one_layer_is_the_plain_call():
    layers, logits, target, _ = activations()
    criterion = AverageMarginLoss()
    torch.testing.assert_close(
        criterion(logits, target, [layers[1]]), criterion(logits, target, layers[1])
    )


def test_errors_say_what_is_wrong():
    layers, logits, target, _ = activations()
    criterion = AverageMarginLoss()
    with pytest.raises(ValueError, match="one for each of 3 inputs, got 2"):
        criterion(logits, target, layers, layer_weights=[1, 2])
    with pytest.raises(ValueError, match="at least one tensor"):
        criterion(logits, target, [])
    with pytest.raises(ValueError, match="not in the graph"):
        criterion(logits, target, [torch.randn(5, 3).double().requires_grad_()])
    with pytest.raises(ValueError, match=r"call criterion.run\(model"):
        AverageMarginLoss(gradient="finite_difference")(logits, target, layers)
