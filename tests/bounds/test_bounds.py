from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from measurement.networks import exact_margin, linear_model, relu_network, sample_plane
from torch import Tensor, nn

from margin_ext.bounds import (
    BOUNDS,
    BoundResult,
    Certified,
    MinimumDistance,
    Sampled,
    register_bound,
    resolve_bounds,
)
from margin_ext.bounds.first_order import FirstOrderOptions, first_order_margins
from margin_ext.bounds.linear import is_linear
from margin_ext.measurement import measure
from margin_ext.models.evaluation_mode import Model
from margin_ext.random_points import sample_generator, unit_ball
from margin_ext.reference import linear_margin
from margin_ext.threat import ThreatModel


def correct_points(model: nn.Linear, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, model.in_features, generator=generator, dtype=torch.float64)
    return x, model(x).argmax(dim=1).detach()


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize(("sizes", "seeds"), [((2, 5, 3), (0, 6)), ((2, 3, 3, 3), (4, 7))])
@pytest.mark.filterwarnings("ignore:.*no input gradient")
def test_certified_below_exact_below_attack(
    p: float, sizes: tuple[int, ...], seeds: tuple[int, ...]
) -> None:
    found = []
    for seed in seeds:
        model = relu_network(sizes, seed)
        x, label = sample_plane(model, 5)
        exact = torch.tensor(
            [exact_margin(model, a, int(b), p) for a, b in zip(x, label, strict=True)],
            dtype=torch.float64,
        )
        report = measure(
            model,
            (x, label),
            p=p,
            bounds=[Certified(bisections=6), "minimum_distance"],
        )
        certified = torch.from_numpy(report.first.bounds["certified"])
        attack = torch.from_numpy(report.first.bounds["minimum_distance"])
        assert (certified <= exact * (1 + 1e-9)).all()
        assert (attack >= exact * (1 - 1e-9)).all()
        reached = torch.isfinite(exact)
        found.append((exact[reached], certified[reached], attack[reached]))
    exact, certified, attack = (torch.cat(values) for values in zip(*found, strict=True))
    # Neither side is vacuous.
    assert float((certified / exact).median()) > 0.2
    assert float((attack / exact).median()) < 1.01


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_linear_models_from_all_sides(p: float) -> None:
    model = linear_model()
    x, label = correct_points(model, 20)
    exact = linear_margin(model.weight, model.bias, x, label, p=p).detach()
    threat = ThreatModel(p=p)
    certified = Certified(bisections=30)(model, x, label, threat=threat).distance
    torch.testing.assert_close(certified, exact, rtol=1e-6, atol=0)
    attack = MinimumDistance(steps=100)(model, x, label, threat=threat)
    assert (attack.distance >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(attack.distance, exact, rtol=0.01, atol=0)
    sampled = Sampled(points=8, radius=100.0)(model, x, label, threat=threat)
    torch.testing.assert_close(sampled.distance, exact, rtol=1e-5, atol=0)


def test_attacked_points_are_what_they_claim() -> None:
    model = relu_network((2, 9, 3), 4)
    x, label = sample_plane(model, 30)
    std = torch.tensor([0.5, 2.0]).double()
    for p in (2.0, math.inf):
        found = MinimumDistance()(model, x, label, threat=ThreatModel(p=p, input_std=std))
        assert found.point is not None
        reached = torch.isfinite(found.distance)
        assert bool(reached.any())
        z = model(found.point)
        gap = z.gather(1, label[:, None]).squeeze(1) - z.scatter(1, label[:, None], -math.inf).amax(
            1
        )
        assert (gap[reached] <= 0).all()
        distance = torch.linalg.vector_norm((found.point - x) * std, p, dim=1)
        torch.testing.assert_close(distance[reached], found.distance[reached])


def test_the_data_range_makes_distances_longer_and_is_kept() -> None:
    model = relu_network((6, 16, 3), 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 6, generator=generator, dtype=torch.float64).round(decimals=1)
    label = model(x).argmax(dim=1)
    threat = ThreatModel(data_range=(0.0, 1.0))
    free = MinimumDistance(in_range=False)(model, x, label, threat=threat)
    inside = MinimumDistance()(model, x, label, threat=threat)
    assert inside.point is not None
    assert float(inside.point.min()) >= 0
    assert float(inside.point.max()) <= 1
    # Attacks find no exact minima, so a little slack.
    assert (inside.distance >= free.distance * 0.98).all()


def test_wrong_samples_have_distance_zero_in_a_signed_report() -> None:
    model = relu_network((2, 7, 3))
    x, label = sample_plane(model, 12)
    target = (label + 1) % 3
    target[:6] = label[:6]
    report = measure(
        model,
        (x, target),
        bounds=["certified", "minimum_distance", Sampled(points=64, radius=1.0)],
    )
    for values in report.first.bounds.values():
        assert (values[6:] == 0).all()
        assert (values[:6] > 0).all()
    unsigned = measure(model, (x, target), signed=False, bounds=["minimum_distance"])
    assert (unsigned.first.bounds["minimum_distance"] > 0).all()
    text = str(report)
    assert "certified (lower bound)" in text
    assert "sampled estimate" in text


def test_the_sampled_estimate_is_that_of_the_definition() -> None:
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    sampled = Sampled(points=40, blocks=2, radius=0.7, chunk=16, seed=5)
    found = sampled(model, x, label, threat=ThreatModel())
    for i in range(5):
        generator = sample_generator(5, "sampled", i, x.device)
        chunks = [16, 16, 8] * 2
        noise = torch.cat([unit_ball(count, 6, 2, generator) for count in chunks])
        assert float(noise.norm(dim=1).max()) <= 1 + 1e-6
        points = (x[i] + 0.7 * noise).requires_grad_()
        ratios = []
        for k in range(4):
            if k == int(label[i]):
                continue
            z = model(points)
            (grad,) = torch.autograd.grad((z[:, label[i]] - z[:, k]).sum(), points)
            at_x = model(x[i])
            ratios.append(((at_x[label[i]] - at_x[k]) / grad.norm(dim=1).max()).item())
        assert float(found.distance[i]) == pytest.approx(min(0.7, *ratios), rel=1e-6)


def test_the_sampled_estimate_does_not_depend_on_how_samples_are_batched() -> None:
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    sampled, threat = Sampled(points=10, chunk=64), ThreatModel()
    whole = sampled(model, x, label, threat=threat).distance
    alone = [
        sampled(model, x[i : i + 1], label[i : i + 1], threat=threat, indices=[i]).distance
        for i in range(9)
    ]
    torch.testing.assert_close(whole, torch.cat(alone))


def test_nearest_classes_and_clipping() -> None:
    model = relu_network((6, 16, 8), 2)
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    threat = ThreatModel(data_range=(0.0, 1.0))
    every = Sampled().estimate(model, x, label, threat=threat)
    near = Sampled(nearest=3).estimate(model, x, label, threat=threat)
    assert near.competitors.shape == (9, 3)
    assert torch.equal(near.competitors, every.competitors[:, :3])
    assert (near.estimate >= every.estimate).all()
    seen: list[Tensor] = []

    def watched(points: Tensor) -> Tensor:
        seen.append(points.detach())
        return model(points)

    Sampled(in_range=True)(watched, x, label, threat=threat)
    assert float(torch.cat(seen).min()) >= 0
    assert float(torch.cat(seen).max()) <= 1


def test_the_extreme_value_score() -> None:
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    plain = Sampled(points=16, blocks=20, radius=3.0)
    extreme = dataclasses.replace(plain, extreme_value=True)
    threat = ThreatModel()
    largest = plain.estimate(model, x, label, threat=threat)
    score = extreme.estimate(model, x, label, threat=threat)
    assert (score.lipschitz >= largest.lipschitz).all()
    assert (score.estimate <= largest.estimate).all()
    # A linear model's blocks have one maximum, which is the location.
    linear = linear_model()
    points, classes = correct_points(linear, 3)
    wide = dataclasses.replace(extreme, radius=50.0)
    fitted = wide.estimate(linear, points, classes, threat=threat)
    exact = linear_margin(linear.weight, linear.bias, points, classes).detach()
    torch.testing.assert_close(fitted.estimate, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_points_fill_the_ball_uniformly(p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = unit_ball(20000, 3, p, generator)
    radius = torch.linalg.vector_norm(points, p, dim=1)
    assert float(radius.max()) <= 1 + 1e-5
    # The share inside radius r is r^3.
    for r in (0.5, 0.8):
        assert float((radius <= r).double().mean()) == pytest.approx(r**3, abs=0.015)
    assert float(points.mean(dim=0).abs().max()) < 0.02


def test_an_exact_zero_of_the_generator_is_no_infinite_coordinate() -> None:
    """Under p = 1 it made the whole sample NaN: one batch in 43 of 128 CIFAR images."""
    generator = torch.Generator().manual_seed(34)
    drawn = torch.rand(128, 3072, generator=generator)
    assert bool((drawn == 0).any())
    points = unit_ball(128, 3072, 1.0, generator.manual_seed(34))
    assert bool(points.isfinite().all())


def test_certification_refuses_other_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2)).double()
    x, label = sample_plane(model, 2)
    with pytest.raises(TypeError, match="GELU"):
        Certified()(model, x, label, threat=ThreatModel())


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_certification_refuses_narrow_types(narrow: torch.dtype) -> None:
    model = relu_network((2, 5, 3)).to(narrow)
    x = torch.randn(2, 2).to(narrow)
    with pytest.raises(TypeError, match="float32 and float64"):
        Certified()(model, x, torch.tensor([0, 1]), threat=ThreatModel())


def _hook(model: nn.Module) -> None:
    model[0].register_forward_hook(lambda *call: call[2] * 2)  # type: ignore[index, operator]


def _hook_before(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, call: (call[0] + 1,))


def _patch(model: nn.Module) -> None:
    model[2].forward = lambda h: h[:, :3]  # type: ignore[index, operator, assignment]


def _drop(model: nn.Module) -> None:
    model.append(nn.Dropout(0.5).train())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [(_hook, "hooks"), (_hook_before, "hooks"), (_patch, "replaced"), (_drop, "training mode")],
)
def test_certification_refuses_what_it_cannot_see(
    change: Callable[[nn.Module], None], message: str
) -> None:
    model = relu_network((2, 5, 3))
    x, label = sample_plane(model, 2)
    change(model)
    with pytest.raises(TypeError, match=message):
        Certified()(model, x, label, threat=ThreatModel())
    linear = nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(3, 3))
    assert is_linear(linear)
    change(linear)
    assert not is_linear(linear)


def test_certified_radii_of_float32_lie_below_those_of_float64() -> None:
    """A first layer that normalises raw units loses digits in float32."""
    torch.manual_seed(0)
    mean, span = torch.tensor([19791.0, 0.0, 650.0]), torch.tensor([60261.0, 6.28, 1100.0])
    scale = nn.Linear(3, 3)
    with torch.no_grad():
        scale.weight.copy_(torch.diag(1 / span))
        scale.bias.copy_(-mean / span)
    model = nn.Sequential(scale, nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 4))
    x = mean + (torch.rand(20, 3) - 0.5) * span
    wide = copy.deepcopy(model).double()
    label = wide(x.double()).argmax(dim=1)
    for p in (2.0, math.inf):
        threat = ThreatModel(p=p)
        narrow = Certified()(model, x, label, threat=threat).distance.double()
        exact = Certified()(wide, x.double(), label, threat=threat).distance
        attack = MinimumDistance()(wide, x.double(), label, threat=threat).distance
        assert (narrow <= exact * (1 + 2e-3)).all()
        assert (narrow <= attack).all()
        assert float((narrow / exact).median()) > 0.99


def test_certification_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4),
    ).double().eval()  # fmt: skip
    x = torch.rand(4, 1, 8, 8).double()
    label = model(x).argmax(dim=1)
    for p in (2.0, math.inf):
        threat = ThreatModel(p=p)
        certified = Certified()(model, x, label, threat=threat).distance
        attack = MinimumDistance()(model, x, label, threat=threat).distance
        assert (certified > 0).all()
        assert (certified <= attack).all()


@pytest.mark.parametrize(
    "settings",
    [
        lambda: Sampled(points=0),
        lambda: Sampled(radius=0.0),
        lambda: Sampled(extreme_value=True, blocks=2),
        lambda: MinimumDistance(steps=1),
        lambda: MinimumDistance(targets=-1),
        lambda: Certified(bisections=0),
    ],
)
def test_settings_that_make_no_sense(settings: object) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        settings()  # type: ignore[operator]


class HalfTheTangent:
    """A bound that a user might add, in one file."""

    name, title, kind = "half_tangent", "half of the tangent (estimate)", "estimate"

    def check(self, threat: ThreatModel) -> None:
        if math.isinf(threat.p):
            raise ValueError("not for linf")

    def settings(self) -> dict[str, Any]:
        return {"factor": 0.5}

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> BoundResult:
        margins = first_order_margins(model, inputs, label, FirstOrderOptions([threat])).margin[0]
        return BoundResult(margins / 2)


def test_a_bound_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BOUNDS, "makers", dict(BOUNDS.makers))
    register_bound(HalfTheTangent)
    model = linear_model()
    x, label = correct_points(model, 8)
    report = measure(model, (x, label), bounds=["half_tangent", "minimum_distance"])
    np.testing.assert_allclose(report.first.bounds["half_tangent"], report.margin / 2)
    assert "l2 half of the tangent (estimate)" in str(report)
    assert report.settings["half_tangent"] == {"factor": 0.5}
    assert "half_tangent" in report.to_dict()["norms"]["l2"]
    with pytest.raises(ValueError, match="not for linf"):
        measure(model, (x, label), p="inf", bounds=[HalfTheTangent()])


def test_names_of_bounds() -> None:
    assert resolve_bounds(["sampled"], seed=7) == (Sampled(seed=7),)
    assert resolve_bounds([Sampled(points=3)], seed=7) == (Sampled(points=3),)
    with pytest.warns(FutureWarning, match='"attack" in bounds is called "minimum_distance"'):
        assert resolve_bounds(["attack"]) == (MinimumDistance(),)
    with pytest.raises(ValueError, match="bounds must be from certified, foolbox, minimum_dist"):
        resolve_bounds(["magic"])
    with pytest.raises(ValueError, match="must have different names"):
        resolve_bounds(["certified", Certified(rows=3)])
    with pytest.raises(ValueError, match="must be a sequence"):
        resolve_bounds("certified")


def test_in_few_dimensions_random_points_find_what_gradients_do_not() -> None:
    """The gradient leads to x = 3; a small disc of the other class lies on the other side."""

    def model(x: Tensor) -> Tensor:
        disc = (x + torch.tensor([1.0, 0.0])).norm(dim=1) < 0.4
        gap = torch.where(disc, -1.0, 3.0 - x[:, 0])
        return torch.stack([gap, torch.zeros_like(gap)], dim=1)

    x, label = torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64)
    found = MinimumDistance()(model, x, label, threat=ThreatModel(p=2))
    assert ((found.distance > 0.6 - 1e-6) & (found.distance < 1.4)).all()
    alone = MinimumDistance()(model, x[:1], label[:1], threat=ThreatModel(p=2), indices=[7])
    torch.testing.assert_close(alone.distance[0], found.distance[7])
