"""Options that a schedule changes during training are those of a new criterion at each step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, FiniteDifference, Regularizer, Secant

SCHEDULES = {
    "mu": [0.0, 0.1, 1.0, 0.5],
    "tau": [3.0, 2.0, 0.5, 1.0],
    "p": [2, 1, "inf", 3],
    "regularizer": ["ramp", "softplus", Regularizer.hinge(1.0), "linear"],
    "gradient": ["double_backward", "detached", FiniteDifference("central"), "auto"],
    "margin": ["first_order", Secant(steps=1), "distance", "additive", "logit_gap", "secant"],
    "classes": ["runner_up", 2, "all", 1],
    "label_smoothing": [0.0, 0.1, 0.2, 0.0],
    "reduction": ["mean", "sum", "none", "mean"],
    "weight": [None, torch.tensor([1.0, 2.0, 3.0]), torch.ones(3), None],
    "input_std": [None, 0.5, [0.5] * 6, 2.0],
    "eps": [1e-6, 1.0, 10.0, 1e-3],
    "ignore_index": [-100, 0, 1, 2],
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def trained(losses, name) -> list[torch.Tensor]:
    """Parameters after a training in which each step asks for its loss."""
    model, found = network(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(1)
    for value in SCHEDULES[name]:
        x, y = torch.randn(8, 6), torch.randint(3, (8,))
        optimizer.zero_grad()
        out = losses(value).run(model, x, y)
        out.loss.mean().backward()
        optimizer.step()
        found += [out.loss.detach(), *(p.detach().clone() for p in model.parameters())]
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:AverageMarginLoss")
def test_a_training_under_a_schedule(name):
    kept = AverageMarginLoss()

    def changed(value):
        setattr(kept, name, value)
        return kept

    found = trained(changed, name)
    wanted = trained(lambda value: AverageMarginLoss(**{name: value}), name)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["difference", "secant", "positions", "critical"])
def test_names_of_the_first_version_are_not_set_in_silence(name):
    with pytest.raises(TypeError, match=f"{name}= is now"):
        setattr(AverageMarginLoss(), name, 1)


def test_objects_are_put_in_place_whole():
    criterion = AverageMarginLoss(gradient=FiniteDifference())
    with pytest.raises(AttributeError, match="cannot assign to field"):
        criterion.gradient.step = 2.0
    with pytest.raises(AttributeError, match="cannot assign to field"):
        criterion.options.tau = 2.0
    criterion.gradient = FiniteDifference(step=2.0)
    assert criterion.gradient.step == 2.0
