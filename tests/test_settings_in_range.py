"""Settings that are no numbers, infinite, or outside what the type of the margins can hold are
refused by name; what is inside trains.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, LossOptions, functional, reference
from margin_ext.regularizers import Regularizer

Z, Y, G = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(3, 6)
PHI = Regularizer.ramp(0, 1)
OPS = pytest.mark.parametrize("ops", [functional, reference], ids=["functional", "reference"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu": math.inf}, "mu must be finite, got inf"),
        ({"mu": math.nan}, "mu must be at least 0, got nan"),
        ({"eps": math.inf}, "eps must be finite, got inf"),
        ({"eps": math.nan}, "eps must be above 0, got nan"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"tau": math.inf}, "tau must be finite, got inf"),
        ({"tau": -math.inf, "regularizer": "hinge"}, "tau must be finite, got -inf"),
        ({"tau": math.nan, "regularizer": "softplus"}, "tau must be finite, got nan"),
        ({"label_smoothing": math.nan}, "label_smoothing must lie in 0..1, got nan"),
        ({"fraction": math.nan}, "fraction must be above 0 and at most 1, got nan"),
        ({"p": math.nan}, "p must be a number >= 1"),
        ({"input_std": math.nan}, "input_std must be"),
        ({"input_std": 0.0}, "input_std must be"),
        ({"weight": torch.tensor([1.0, math.nan])}, "class weights must be finite, got nan"),
    ],
    ids=str,
)
def test_of_the_loss(settings, message):
    with pytest.raises(ValueError, match=message):
        AverageMarginLoss(**settings)
    criterion = AverageMarginLoss(regularizer=settings.pop("regularizer", "ramp"))
    ((name, value),) = settings.items()
    before = repr(criterion)
    if name == "weight":  # a buffer, which is looked at when it is used
        criterion.weight = value
        with pytest.raises(ValueError, match=message):
            criterion(Z[:, :2], Y % 2)
    else:
        with pytest.raises(ValueError, match=message):
            setattr(criterion, name, value)
        assert repr(criterion) == before
    if name != "input_std":  # looked at by the criterion, which makes it a tensor
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(LossOptions(regularizer=criterion.regularizer), **{name: value})


@OPS
@pytest.mark.parametrize("kind", ["classes", "dense", "soft"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 1e-39}, r"eps must lie in 1.18e-38..3.4e\+38 for torch.float32, got 1e-39"),
        ({"eps": 1e39}, r"eps must lie in .* for torch.float32, got 1e\+39"),
        ({"eps": math.inf}, "eps must be finite"),
        ({"mu": 1e39}, r"mu must be finite in torch.float32, got 1e\+39"),
        ({"mu": math.inf}, "mu must be finite, got inf"),
        ({"regularizer": Regularizer.softplus(1e-39)}, "softplus .*hi=1e-39 is too narrow"),
        ({"regularizer": Regularizer.exponential(1e-45)}, "exponential .* is too narrow"),
        ({"regularizer": Regularizer.ramp(1, 1 + 1e-9)}, "ramp .* is too narrow"),
        ({"regularizer": Regularizer.ramp(0, 1e-40)}, "ramp .* is too narrow"),
        ({"regularizer": Regularizer.hinge(1e39)}, "hinge .* too large for torch.float32"),
        ({"weight": torch.tensor([1.0, math.nan, 1, 1])}, "class weights must be finite, got nan"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_of_the_ops(ops, kind, dtype, settings, message):
    """In float16 too: margins are float32 then."""
    z, y = Z.to(dtype), Y
    if kind == "dense":
        z, y = z[:, :, None].expand(3, 4, 2), Y[:, None].expand(3, 2)
    elif kind == "soft":
        y = torch.softmax(Z, 1)
    with pytest.raises(ValueError, match=message):
        ops.average_margin_loss(z, y, G.to(dtype), **{"regularizer": PHI, **settings})


@OPS
def test_what_float32_cannot_hold_float64_can(ops):
    out = ops.average_margin_loss(
        *(Z.double(), Y, G.double()), regularizer=Regularizer.ramp(1, 1 + 1e-9), eps=1e-300
    )
    assert bool(out.loss.isfinite())
    with pytest.raises(ValueError, match=r"eps must lie in .* for torch\.float64"):
        ops.average_margin_loss(Z.double(), Y, G.double(), regularizer=PHI, eps=1e-310)


@OPS
@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf, 1e-39, 1e39])
def test_of_the_margin(ops, eps):
    with pytest.raises(ValueError, match="eps must"):
        ops.first_order_margin(torch.ones(3), G, eps=eps)


@OPS
def test_the_smallest_eps_keeps_gradients_finite(ops):
    """A sample without a gradient: 1 / eps is a number."""
    z = torch.tensor([[3.0, 1.0]], requires_grad=True)
    g = torch.zeros(1, 4, requires_grad=True)
    out = ops.average_margin_loss(
        z, torch.tensor([0]), g, regularizer=PHI, eps=torch.finfo(torch.float32).tiny
    )
    for gradient in torch.autograd.grad(out.loss, (z, g)):
        assert bool(gradient.isfinite().all())


@OPS
def test_without_a_gradient_eps_is_not_asked(ops):
    assert bool(ops.average_margin_loss(Z, Y, regularizer=PHI, eps=1e-39).loss.isfinite())


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("margin", ["first_order", "logit_gap"])
@pytest.mark.parametrize("normalizer", [0.0, -4.0, math.nan, math.inf, -math.inf])
def test_a_normalizer_that_divides_by_nothing_good(normalizer, margin, as_tensor):
    value = torch.tensor(normalizer) if as_tensor else normalizer
    criterion = AverageMarginLoss(margin=margin)
    net = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="normalizer must be above 0 and finite, got"):
        criterion.run(net, G, Y, normalizer=value)
    x = G.clone().requires_grad_()
    with pytest.raises(ValueError, match="normalizer must be above 0 and finite, got"):
        criterion(net(x), Y, x, normalizer=value)
    assert criterion.steps == 0, "a refused step is no step"


@pytest.mark.parametrize(
    "normalizer", [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7.0])], ids=str
)
def test_a_good_normalizer_divides_the_sum(normalizer):
    net = nn.Linear(6, 4)
    total = AverageMarginLoss(reduction="sum").run(net, G, Y).loss
    found = AverageMarginLoss().run(net, G, Y, normalizer=normalizer).loss
    assert found.shape == ()
    torch.testing.assert_close(found, total / 7)


def test_a_normalizer_of_several_numbers_is_refused():
    with pytest.raises(ValueError, match=r"normalizer must be one number, got \[2\]"):
        AverageMarginLoss().run(nn.Linear(6, 4), G, Y, normalizer=torch.ones(2))


@OPS
@pytest.mark.parametrize(
    "target", [torch.tensor([0.2, 1.7, 2.0]), torch.tensor([0.0, 1.0, 2.0]), Y.bool()], ids=str
)
def test_labels_that_are_no_whole_numbers(ops, target):
    with pytest.raises((TypeError, ValueError), match="target"):
        ops.average_margin_loss(Z, target, G, regularizer=PHI)
    with pytest.raises((TypeError, ValueError), match="target"):
        ops.logit_gap(Z, target)
