"""The search that sees decisions only, against networks whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from margin_ext.measurement.decision_search import decision_search
from margin_ext.reference import linear_margin
from margin_ext.threat import ThreatModel
from tests.measurement.networks import linear_model, sample_plane


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_two_classes_in_the_plane(p: float) -> None:
    model = linear_model(classes=2, dims=2)
    x, y = sample_plane(model, 40)
    other = x[[int((y != label).nonzero()[0]) for label in y]]
    threat = ThreatModel(p=p)
    calls = []

    def adversarial(points: torch.Tensor) -> torch.Tensor:
        calls.append(len(points))
        with torch.no_grad():
            return model(points).argmax(dim=1) != y

    distance, point = decision_search(adversarial, x, other, threat=threat, seed=0)
    exact = linear_margin(model.weight, model.bias, x, y, p=p).detach()
    assert bool(adversarial(point).all())
    torch.testing.assert_close(threat.distance(point, x), distance)
    assert bool((distance >= exact * (1 - 1e-9)).all())
    assert float((distance / exact).median()) < 1.05
    assert bool((distance <= threat.distance(other, x)).all())


def test_points_stay_in_the_range_and_repeat() -> None:
    model = linear_model(classes=3, dims=6)
    x = torch.rand(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(dim=1).detach()
    rows = [int((y != label).nonzero()[0]) for label in y]
    threat = ThreatModel(p=2, data_range=(0.0, 1.0))

    def search(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return decision_search(
            lambda points: model(points).argmax(dim=1) != y, x, x[rows], threat=threat, seed=seed
        )

    first, again = search(3), search(3)
    assert torch.equal(first[1], again[1])
    assert float(first[1].min()) >= 0
    assert float(first[1].max()) <= 1
