"""The projection and the step of l1 attacks, against searches over every threshold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from margin_ext.bounds import MinimumDistance
from margin_ext.l1_step import into_l1_ball, l1_step
from margin_ext.threat import ThreatModel


def problem(seed: int, dims: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(5, dims, generator=generator, dtype=torch.float64) for _ in range(3)]
    offset = 4 * draw[0] - 2
    radius = 3 * torch.rand(5, generator=generator, dtype=torch.float64)
    # Some coordinates cannot move at all.
    return offset, radius, (draw[1].round(decimals=1), draw[2].round(decimals=1))


@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_the_projection_is_the_nearest_point(seed: int, dims: int, bounded: bool) -> None:
    """By bisection of the threshold: the norm falls with it."""
    offset, radius, room = problem(seed, dims)
    space = torch.where(offset < 0, *room) if bounded else torch.full_like(offset, 9.0)
    low, high = torch.zeros(5, 1, dtype=torch.float64), offset.abs().amax(1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        norm = (offset.abs() - middle).clamp_min(0).minimum(space).sum(1, keepdim=True)
        low = torch.where(norm > radius.unsqueeze(1), middle, low)
        high = torch.where(norm > radius.unsqueeze(1), high, middle)
    start = offset.abs().minimum(space).sum(1, keepdim=True) <= radius.unsqueeze(1)
    shift = torch.where(start, 0.0, high)
    right = offset.sign() * (offset.abs() - shift).clamp_min(0).minimum(space)
    found = into_l1_ball(offset, radius, room if bounded else None)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_no_point_of_the_set_is_nearer() -> None:
    offset, radius, room = problem(3, 6)
    found = into_l1_ball(offset, radius, room)
    assert (found.abs().sum(1) <= radius + 1e-12).all()
    assert ((found >= -room[0]) & (found <= room[1])).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        other = 2 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
        other = other.maximum(-room[0]).minimum(room[1])
        other *= (radius / other.abs().sum(1)).clamp_max(1).unsqueeze(1)
        assert ((other - offset).norm(dim=1) >= (found - offset).norm(dim=1) - 1e-12).all()


def test_steps_become_sparse() -> None:
    """A fifth of the coordinates first, then two thirds of those that have moved."""
    grad = torch.arange(1.0, 31.0).unsqueeze(0)
    one = torch.ones(1)
    offset = torch.zeros(1, 30)
    counts = []
    for _ in range(5):
        step = l1_step(offset, grad, one, 9 * one, None) - offset
        counts.append(int((step > 0).sum()))
        offset = l1_step(offset, grad, one, 9 * one, None) * (step > 0)
    assert counts == [6, 4, 3, 2, 1]


def test_coordinates_at_the_end_of_the_range_leave_their_place_to_others() -> None:
    grad = torch.tensor([[5.0, 4.0, -3.0, 2.0, 1.0]])
    offset = torch.tensor([[0.2, 0.0, 0.0, 0.0, 0.0]])
    room = torch.full((1, 5), 0.5), torch.full((1, 5), 0.2)
    one = torch.ones(1)
    found = l1_step(offset, grad, 0.1 * one, 9 * one, room)
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.1, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("std", [None, 0.5, (0.25, 0.5, 1.0)])
def test_units_and_types(dtype: torch.dtype, std: float | tuple[float, ...] | None) -> None:
    """A step in normalised inputs is the step in pixels, and keeps to ball and range."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 6, 6)
    pixels, grad, moved = (torch.rand(shape, generator=generator).to(dtype) for _ in range(3))
    scale = torch.as_tensor(1.0 if std is None else std, dtype=dtype).reshape(1, -1, 1, 1)
    radius = torch.tensor([0.0, 0.5, 2.0, 40.0])
    plain = ThreatModel(p=1, data_range=(0.0, 1.0))
    right = plain.attack_step(moved, grad, 2 * radius, center=pixels, radius=radius, sparse=True)
    high = [float(one) for one in (1 / scale).flatten()]
    threat = ThreatModel(p=1, data_range=([0.0] * len(high), high), input_std=std)
    if len(high) == 1:
        threat = ThreatModel(p=1, data_range=(0.0, high[0]), input_std=std)
    found = threat.attack_step(
        moved / scale, grad * scale, 2 * radius, center=pixels / scale, radius=radius, sparse=True
    )
    assert found.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found * scale, right, atol=rounding, rtol=rounding)
    length = (found.double() * scale.double() - pixels.double()).abs().sum((1, 2, 3))
    assert (length <= radius.double() + 108 * rounding).all()
    assert ((found * scale >= 0) & (found * scale <= 1 + rounding)).all()


def test_a_broken_gradient_is_not_hidden() -> None:
    x = torch.full((2, 4), 0.5)
    grad = torch.tensor([[1.0, float("nan"), 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    radius = torch.ones(2)
    found = ThreatModel(p=1, data_range=(0, 1)).attack_step(
        x, grad, radius, center=x, radius=radius, sparse=True
    )
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def linear_distance(slope: Tensor, need: float, room: Tensor) -> float:
    """How far a gap with this slope [D] must be moved to lose ``need``: the steepest first."""
    order = slope.abs().argsort(descending=True)
    gain = (slope.abs() * room)[order]
    whole = int((gain.cumsum(0) < need).sum())
    if whole == len(slope):
        return math.inf
    rest = (need - float(gain[:whole].sum())) / float(slope.abs()[order[whole]])
    return float(room[order[:whole]].sum()) + rest


@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize(("size", "classes"), [(8, 3), (50, 10), (784, 10)])
def test_distances_of_linear_models_are_exact(size: int, classes: int, in_range: bool) -> None:
    """Without a range the nearest point has moved one coordinate; in a range all but exact."""
    torch.manual_seed(size)
    net, x = nn.Linear(size, classes), torch.rand(20, size)
    label = net(x).argmax(1)
    logits, weight = net(x).detach(), net.weight.detach()
    wanted = torch.empty(20)
    for i, own in enumerate(label.tolist()):
        distances = []
        for rival in set(range(classes)) - {own}:
            slope = weight[rival] - weight[own]
            room = torch.where(slope > 0, 1 - x[i], x[i]) if in_range else torch.full((size,), 1e6)
            need = float(logits[i, own] - logits[i, rival])
            distances.append(linear_distance(slope, need, room))
        wanted[i] = min(distances)
    threat = ThreatModel(p=1, data_range=(0, 1) if in_range else None)
    found = MinimumDistance()(net, x, label, threat=threat).distance
    reachable = wanted.isfinite()
    assert torch.equal(found.isfinite(), reachable)
    ratio = found[reachable] / wanted[reachable]
    assert float(ratio.min()) > 1 - 1e-4
    assert float(ratio.max()) < (1.05 if in_range else 1.0005)
