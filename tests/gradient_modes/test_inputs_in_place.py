"""A model that changes its inputs in place: right where one pass is made, else refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss, FiniteDifference


class InPlace(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change, self.net = change, nn.Linear(6, CLASSES)

    def forward(self, x):
        self.change(x)
        return self.net(x)


def _without_grad(x):
    with torch.no_grad():
        x.sub_(1.0).div_(2.0)


def _data(x):
    x.data.sub_(1.0).div_(2.0)


def _numpy(x):
    array = x.detach().numpy()
    array -= 1
    array /= 2


SILENT = [_without_grad, _data, _numpy]
FURTHER = [
    {"gradient": "finite_difference"},
    {"gradient": FiniteDifference("central", deferred=False)},
    {"gradient": "auto"},
    {"margin": "secant"},
    {"fraction": 0.5},
    {"margin": "distance"},
]


def data(batch=8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 6), torch.arange(batch) % CLASSES


@pytest.mark.parametrize("change", SILENT)
@pytest.mark.parametrize("settings", FURTHER, ids=str)
@pytest.mark.parametrize("batch", [1, 8])
def test_further_passes_are_refused(change, settings, batch):
    x, y = data(batch)
    with pytest.raises(RuntimeError, match=r"changed its inputs in place.*x = \(x - mean\) / std"):
        AverageMarginLoss(**settings).run(InPlace(change), x, y)


@pytest.mark.parametrize("change", SILENT)
@pytest.mark.parametrize("gradient", ["double_backward", "detached"])
def test_one_pass_has_the_margin_of_the_new_values(change, gradient):
    x, y = data()
    model = InPlace(change)
    criterion = AverageMarginLoss(gradient=gradient, regularizer="softplus")
    out = criterion.run(model, x.clone(), y)
    wanted = criterion.run(model.net, (x - 1) / 2, y)
    torch.testing.assert_close(out.loss, wanted.loss)
    torch.testing.assert_close(out.margin, wanted.margin)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, CLASSES)),
        InPlace(lambda x: x.sub_(1.0)),
        InPlace(lambda x: x[:, :2].clamp_(0, 1)),
    ],
    ids=["relu", "sub_", "view"],
)
@pytest.mark.parametrize("settings", [{}, *FURTHER[:4]], ids=str)
def test_in_place_layers_that_autograd_sees_are_refused_in_words(model, settings):
    x, y = data()
    with pytest.raises(RuntimeError, match=r"changes? its inputs in place.*without inplace=True"):
        AverageMarginLoss(**settings).run(model, x, y)


def test_nan_inputs_are_not_taken_for_changed_ones():
    x, y = data()
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="inputs hold NaN, the first at index 0 of the batch"):
        AverageMarginLoss(gradient="finite_difference").run(nn.Linear(6, CLASSES), x, y)
