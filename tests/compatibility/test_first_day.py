"""The README's loop with the networks that people bring."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss


class SqueezeExcitation(nn.Module):
    """The block of MobileNetV3 that weighs channels, with its two activations."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        weight = nn.functional.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.up(weight))


def mobile_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Hardswish(), SqueezeExcitation(8),
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.encoder(tokens)[:, 0])


NETWORKS = {"mobile net": mobile_net, "vision transformer": VisionTransformer}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, 12, 12), torch.arange(4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_loop_says_what_to_do(name):
    model, criterion, (inputs, target) = NETWORKS[name](), AverageMarginLoss(), data()
    inputs.requires_grad_()
    logits = model(inputs)
    with pytest.raises(RuntimeError) as caught:
        criterion(logits, target, inputs)
    words = str(caught.value)
    assert "the model cannot be differentiated twice: derivative for aten::" in words
    assert 'Take gradient="finite_difference" with criterion.run(model, inputs, target)' in words


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gradient", ["finite_difference", "detached"])
def test_the_ways_out_train(name, gradient):
    torch.manual_seed(0)
    model, (inputs, target) = NETWORKS[name](), data()
    criterion = AverageMarginLoss(gradient=gradient, tau=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    values = []
    for _ in range(30):
        out = criterion.run(model, inputs, target)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        values.append(float(out.loss.detach()))
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_validation_needs_no_second_derivative(name):
    model, (inputs, target) = NETWORKS[name]().eval(), data()
    with torch.inference_mode():
        value = AverageMarginLoss().eval().run(model, inputs, target).loss
    wanted = AverageMarginLoss(gradient="detached").eval().run(model, inputs, target).loss
    torch.testing.assert_close(value, wanted.detach())
