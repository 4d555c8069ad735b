"""margin="distance": each sample at its own distance to the boundary, and the gradient of that."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gradient_modes.small_problems import gradients, linear
from margin_ext import AverageMarginLoss, Distance, logit_gap

NORMS = [1, 2, "inf", 3]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("data_range", [None, (-50.0, 50.0)])
@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_it_is_the_exact_distance_on_a_linear_classifier(p, steps, noise, data_range, form):
    """One projection from anywhere is enough; the range is wide enough to have no part in it."""
    model, x, y = linear()
    exact = AverageMarginLoss(p=p, tau=9.0, mu=0.7).run(model, x, y)
    mode = Distance(form=form, steps=steps, noise=noise, data_range=data_range)
    ours = AverageMarginLoss(p=p, tau=9.0, mu=0.7, margin=mode).run(model, x, y)
    torch.testing.assert_close(ours.margin, exact.margin, rtol=1e-9, atol=1e-12)
    assert bool((exact.margin < 0).any())
    for name in ("minimum_margin", "average_margin", "median_margin", "accuracy"):
        found, wanted = getattr(ours.statistics, name), getattr(exact.statistics, name)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert float(exact.statistics.median_margin) == float(exact.margin.median())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("regularizer", ["ramp", "softplus"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_envelopes_gradient_is_exact_on_a_linear_classifier(p, regularizer, noise):
    model, x, y = linear()
    options = {"p": p, "tau": 9.0, "mu": 0.7, "regularizer": regularizer}
    exact = AverageMarginLoss(**options).run(model, x, y).loss
    mode = Distance(form="envelope", steps=1, noise=noise)
    ours = AverageMarginLoss(**options, margin=mode).run(model, x, y).loss
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(gradients(ours, model), gradients(exact, model))


def test_misclassified_samples_are_the_regularizers_business():
    """The ramp from 0 is flat there; one that begins below 0 pushes, and only up to its end."""
    from margin_ext import Regularizer

    model, x, _ = linear()
    y = model(x).argmin(1)
    far = y.clone()
    mode = Distance(form="envelope", steps=1, noise=0.0)

    def term(regularizer):
        loss = AverageMarginLoss(mu=1.0, tau=9.0, margin=mode, regularizer=regularizer)
        return loss.run(model, x, far).loss - nn.functional.cross_entropy(model(x), far)

    assert float(gradients(term("ramp"), model).abs().max()) < 1e-12
    assert float(gradients(term(Regularizer.ramp(-9.0, 0.0)), model).abs().max()) > 1e-2
    assert float(gradients(term(Regularizer.ramp(-1e-9, 0.0)), model).abs().max()) < 1e-12


def by_search(model, x, y, reach=4.0, directions=20_000, points=400) -> torch.Tensor:
    """Distance of the nearest change of class in the plane, along every direction."""
    angles = torch.linspace(0, 2 * math.pi, directions + 1, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    lengths = torch.linspace(0, reach, points + 1, dtype=torch.float64)[1:]
    found = []
    for center, label in zip(x, y, strict=True):
        best = torch.tensor(reach, dtype=torch.float64)
        for length in lengths:
            gap = logit_gap(model(center + length * rays), label.expand(directions)).gap
            if bool((gap <= 0).any()):
                best = length
                break
        found.append(best - reach / points / 2)
    return torch.stack(found)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_finds_the_distance_in_a_network_with_two_layers(noise):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = 1.5 * torch.randn(12, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    wanted = by_search(model, x, y)
    near = wanted < 2.5
    assert int(near.sum()) >= 6
    mode = Distance(form="envelope", steps=8, noise=noise)
    margin = AverageMarginLoss(tau=3.0, margin=mode).run(model, x, y).margin
    first = AverageMarginLoss().run(model, x, y).margin
    close = (margin - wanted).abs() < 0.03
    # A search may end at a boundary that is not the nearest one, and then never says too little.
    assert float(close[near].double().mean()) >= 0.8
    assert bool((margin > wanted - 0.03).all())
    # Where projections end elsewhere the margin is that of the radius.
    assert bool((close | (margin > wanted))[near].all())
    assert (margin - wanted)[near].abs().median() < 0.05 * (first - wanted)[near].abs().median()


def test_the_envelopes_gradient_is_that_of_the_distance():
    """By numbers, where the search has converged."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = 1.5 * torch.randn(12, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    criterion = AverageMarginLoss(
        tau=2.0, mu=1.0, margin=Distance(form="envelope", steps=40, noise=0.0)
    )
    converged = (criterion.run(model, x, y).margin - by_search(model, x, y)).abs() < 0.03
    x, y = x[converged], y[converged]
    out = criterion.run(model, x, y)
    assert int(((out.margin > 0.05) & (out.margin < 1.95)).sum()) >= 6
    ours = gradients(out.loss, model)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def moved(step: float) -> torch.Tensor:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, d in zip(twin.parameters(), direction, strict=True):
                parameter.add_(d, alpha=step)
        return criterion.run(twin, x, y).loss.detach()

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    along = ours @ torch.cat([d.flatten() for d in direction])
    torch.testing.assert_close(along, numeric, rtol=1e-3, atol=1e-5)
