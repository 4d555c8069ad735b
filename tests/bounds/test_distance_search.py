"""Searches for nearest adversarial examples: few coordinates, starts from afar, rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from margin_ext.bounds import MinimumDistance
from margin_ext.bounds.distance_search import DistanceSearch
from margin_ext.threat import ThreatModel


def relu_network(seed: int) -> nn.Sequential:
    """Two inputs, three hidden layers of 16."""
    torch.manual_seed(seed)
    sizes = (2, 16, 16, 16, 4)
    layers: list[nn.Module] = []
    for rows, columns in itertools.pairwise(sizes):
        layers += [nn.Linear(rows, columns), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def scanned_distance(model: nn.Module, x: Tensor, label: int, largest: float) -> float:
    """The shortest of 360 rays' first crossing of the boundary, to within largest / 1000."""
    angles = torch.arange(360, dtype=x.dtype) * (2 * torch.pi / 360)
    rays = torch.stack([angles.cos(), angles.sin()], dim=1)
    for part in (torch.arange(1, 1001, dtype=x.dtype) * (largest / 1000)).split(50):
        points = x + part[:, None, None] * rays
        crossed = (model(points.reshape(-1, 2)).argmax(1) != label).reshape(len(part), -1).any(1)
        if crossed.any():
            return float(part[crossed.to(torch.int8).argmax()])
    return torch.inf


@pytest.mark.parametrize("seed", range(200, 204))
def test_few_coordinates_are_searched_on_all_sides(seed: int) -> None:
    model = relu_network(seed)
    x = torch.randn(6, 2, dtype=torch.float64)
    label = model(x).argmax(1)
    scanned = [scanned_distance(model, a, int(b), 2.0) for a, b in zip(x, label, strict=True)]
    wanted = torch.tensor(scanned, dtype=torch.float64)
    reached = wanted.isfinite()
    found = MinimumDistance()(model, x, label, threat=ThreatModel(p=2)).distance
    assert (found[reached] <= 1.02 * wanted[reached] + 2 / 1000).all()


class FarRegion(nn.Module):
    """Class 1 is what lies beyond 3; up to there the gap has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = torch.relu(x.flatten(1).sum(1) - 3)
        return torch.stack([torch.full_like(beyond, 1.0), 5 * beyond], dim=1)


def test_where_the_gap_is_flat_random_points_are_tried() -> None:
    x = torch.zeros(3, 2)
    label = torch.zeros(3, dtype=torch.long)
    found = MinimumDistance()(FarRegion(), x, label, threat=ThreatModel(p=2))
    assert found.distance.tolist() == pytest.approx([3.2 / 2**0.5] * 3, rel=1e-2)


@pytest.mark.parametrize("p", [1, 2, torch.inf])
def test_points_stay_adversarial_in_batches_of_other_sizes(p: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2), nn.Flatten()
    )
    model = nn.Sequential(model, nn.LazyLinear(10)).eval()
    x = torch.rand(60, 3, 16, 16)
    two = model(x).topk(2).values
    # Not the samples that lie on the boundary themselves.
    x = x[two[:, 0] - two[:, 1] > 1e-3]
    label = model(x).argmax(1)
    assert len(x) > 40
    search = MinimumDistance(steps=20, restarts=0, targets=0, bisections=24)
    found = search(model, x, label, threat=ThreatModel(p=p, data_range=(0, 1)))
    assert found.distance.isfinite().all()
    assert found.point is not None
    for size in (1, 3, 16, 60):
        predicted = torch.cat([model(part).argmax(1) for part in found.point.split(size)])
        assert (predicted != label).all()


@pytest.mark.parametrize("p", [1, 2, torch.inf])
def test_no_samples(p: float) -> None:
    found = MinimumDistance()(
        nn.Linear(2, 2),
        torch.zeros(0, 2),
        torch.zeros(0, dtype=torch.long),
        threat=ThreatModel(p=p),
    )
    assert found.distance.shape == (0,)


class Constant(nn.Module):
    """One class everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, torch.inf])
@pytest.mark.parametrize("dims", [4, 100])
def test_searches_stay_within_the_inputs_type(dims: int, p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, dims).add(20).to(dtype)
    label = torch.zeros(3, dtype=torch.long)
    search = MinimumDistance(steps=6, restarts=2, targets=1)
    found = search(Constant(), x, label, threat=ThreatModel(p=p))
    assert found.distance.isinf().all()


def test_searches_from_afar_are_not_held_by_what_was_found() -> None:
    torch.manual_seed(0)
    linear, seen = nn.Linear(40, 3).requires_grad_(False), []
    x = torch.randn(5, 40)
    label = linear(x).argmax(1)

    def model(points: Tensor) -> Tensor:
        seen.append((points - x).norm(dim=1).detach())
        return linear(points)

    search = DistanceSearch(model, ThreatModel(p=2), x, label, 0.0)
    search.run(20)
    found = search.distance.clone()
    assert found.isfinite().all()
    seen.clear()
    search.run(20)
    assert (torch.stack(seen).amax(0) <= found * (1 + 1e-5)).all()
    seen.clear()
    search.run_from_afar(5.0, 20)
    farthest = torch.stack(seen).amax(0)
    assert (farthest > 4 * found).all()
    assert (farthest < 7 * found).all()
    assert (search.distance <= found).all()
