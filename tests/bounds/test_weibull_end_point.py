from __future__ import annotations

import math

import pytest
import torch
from measurement.networks import relu_network

from margin_ext.bounds import Sampled
from margin_ext.bounds.weibull_end_point import weibull_end_points
from margin_ext.threat import ThreatModel


def draws(shape: float, rows: int, count: int, end: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(10 * shape) + count)
    uniform = torch.rand(rows, count, generator=generator, dtype=torch.float64)
    return end * (1 - 0.3 * (-uniform.log()) ** (1 / shape))


@pytest.mark.parametrize("shape", [1.0, 2.0, 5.0, 10.0, 20.0])
@pytest.mark.parametrize("count", [10, 20, 50])
def test_known_end_points(shape: float, count: int) -> None:
    maxima = draws(shape, 200, count)
    found = weibull_end_points(maxima)
    largest = maxima.amax(dim=1)
    assert (found.end_point >= largest).all()
    assert (found.end_point[~found.fitted] == largest[~found.fitted]).all()
    # At most one in thirty exceeds twice the truth.
    assert float((found.end_point > 2).double().mean()) <= 0.03
    assert float(found.end_point.median()) < 1.05
    assert float(found.fitted.double().mean()) > 0.5


@pytest.mark.parametrize("shape", [2.0, 5.0])
def test_many_blocks_come_nearer_than_the_plain_maximum(shape: float) -> None:
    maxima = draws(shape, 300, 400)
    found = weibull_end_points(maxima)
    fitted = (found.end_point - 1).abs().median()
    assert float(fitted) < 0.5 * float((maxima.amax(dim=1) - 1).abs().median())


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    maxima = draws(5.0, 50, 20)
    plain, scaled = weibull_end_points(maxima), weibull_end_points(maxima * scale)
    assert torch.equal(plain.fitted, scaled.fitted)
    torch.testing.assert_close(scaled.end_point, plain.end_point * scale, rtol=1e-9, atol=0)


def test_samples_without_a_fit_fall_back_on_their_maximum() -> None:
    two_values = torch.tensor([1.0, 2.0] * 10).reshape(1, -1)
    mostly_equal = torch.tensor([2.0] * 15 + [1.0] * 5).reshape(1, -1)
    for maxima in (two_values, mostly_equal):
        found = weibull_end_points(maxima)
        assert not bool(found.fitted)
        assert float(found.end_point) == 2.0
    equal = weibull_end_points(torch.full((1, 20), 3.0))
    assert float(equal.end_point) == 3.0
    assert bool(equal.fitted)


def test_constants_stay_within_a_factor_of_the_largest_gradient() -> None:
    """The likelihood has no maximum where a network has few distinct gradients."""
    threat = ThreatModel()
    fallbacks = 0
    for seed in range(8):
        model = relu_network((2, 6, 3), seed)
        x = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        label = model(x).argmax(dim=1)
        plain = Sampled(points=20, blocks=12, radius=0.7)
        dense = Sampled(points=1500, radius=0.7).estimate(model, x, label, threat=threat)
        score = Sampled(points=20, blocks=12, radius=0.7, extreme_value=True)
        found = score.estimate(model, x, label, threat=threat)
        assert (found.lipschitz >= plain.estimate(model, x, label, threat=threat).lipschitz).all()
        assert (found.lipschitz <= 2 * dense.lipschitz).all()
        fallbacks += int((~found.fitted).sum())
        assert math.isfinite(float(found.estimate.sum()))
    assert fallbacks > 0


def test_fallbacks_are_counted_in_a_warning() -> None:
    model = relu_network((2, 6, 3), 0)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    score = Sampled(points=20, blocks=12, radius=0.7, extreme_value=True)
    missing = int((~score.estimate(model, x, label, threat=ThreatModel()).fitted).sum())
    with pytest.warns(UserWarning, match=rf"failed for {missing} of 12 constants"):
        score(model, x, label, threat=ThreatModel())
