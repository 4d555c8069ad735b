from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from margin_ext.measurement import (
    Certification,
    DistanceAttack,
    Sampling,
    certified_margins,
    measure,
    nearest_adversarial,
    sampled_margins,
)
from margin_ext.random_points import sample_generator, unit_ball
from margin_ext.reference import linear_margin
from measurement.networks import exact_margin, linear_model, relu_network, sample_plane


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
            bounds=["certified", "attack"],
            certification=Certification(bisections=6),
        )
        certified = torch.from_numpy(report.first.bounds["certified"])
        attack = torch.from_numpy(report.first.bounds["attack"])
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
    certified = certified_margins(model, x, label, p=p, settings=Certification(bisections=30))
    torch.testing.assert_close(certified, exact, rtol=1e-6, atol=0)
    attack = nearest_adversarial(model, x, label, p=p, settings=DistanceAttack(steps=100))
    assert (attack.distance >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(attack.distance, exact, rtol=0.01, atol=0)
    settings = Sampling(points=8, radius=100.0)
    sampled = sampled_margins(model, x, label, p=p, settings=settings)
    torch.testing.assert_close(sampled.estimate, exact, rtol=1e-5, atol=0)


def test_attacked_points_are_what_they_claim() -> None:
    model = relu_network((2, 9, 3), 4)
    x, label = sample_plane(model, 30)
    std = torch.tensor([0.5, 2.0]).double()
    for p in (2.0, math.inf):
        found = nearest_adversarial(model, x, label, p=p, input_std=std)
        reached = torch.isfinite(found.distance)
        assert bool(reached.any())
        z = model(found.point)
        gap = z.gather(1, label[:, None]).squeeze(1) - z.scatter(1, label[:, None], -math.inf).amax(
            1
        )
        assert (gap[reached] <= 0).all()
        distance = torch.linalg.vector_norm((found.point - x) * std, p, dim=1)
        torch.testing.assert_close(distance[reached], found.distance[reached])


def test_the_box_makes_the_way_longer_and_is_kept() -> None:
    model = relu_network((6, 16, 3), 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 6, generator=generator, dtype=torch.float64).round(decimals=1)
    label = model(x).argmax(dim=1)
    free = nearest_adversarial(model, x, label)
    boxed = nearest_adversarial(model, x, label, data_range=(0.0, 1.0))
    assert float(boxed.point.min()) >= 0
    assert float(boxed.point.max()) <= 1
    # Attacks find no exact minima, so a little slack.
    assert (boxed.distance >= free.distance * 0.98).all()


def test_wrong_samples_have_distance_zero_in_a_signed_report() -> None:
    model = relu_network((2, 7, 3))
    x, label = sample_plane(model, 12)
    target = (label + 1) % 3
    target[:6] = label[:6]
    report = measure(
        model,
        (x, target),
        bounds=["certified", "attack", "sampled"],
        sampling=Sampling(points=64, radius=1.0),
    )
    for values in report.first.bounds.values():
        assert (values[6:] == 0).all()
        assert (values[:6] > 0).all()
    unsigned = measure(model, (x, target), signed=False, bounds=["attack"])
    assert (unsigned.first.bounds["attack"] > 0).all()
    text = str(report)
    assert "certified (lower bound)" in text
    assert "sampled estimate" in text


def test_the_sampled_estimate_is_that_of_the_definition() -> None:
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    settings = Sampling(points=40, blocks=2, radius=0.7, chunk=16)
    found = sampled_margins(model, x, label, settings=settings, seed=5)
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
        assert float(found.estimate[i]) == pytest.approx(min(0.7, *ratios), rel=1e-6)


def test_the_sampled_estimate_does_not_depend_on_how_samples_are_batched() -> None:
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    settings = Sampling(points=10, chunk=64)
    whole = sampled_margins(model, x, label, settings=settings)
    alone = [
        sampled_margins(model, x[i : i + 1], label[i : i + 1], settings=settings, indices=[i])
        for i in range(9)
    ]
    torch.testing.assert_close(whole.estimate, torch.cat([one.estimate for one in alone]))


def test_nearest_classes_and_clipping() -> None:
    model = relu_network((6, 16, 8), 2)
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    every = sampled_margins(model, x, label)
    near = sampled_margins(model, x, label, settings=Sampling(nearest=3))
    assert near.competitors.shape == (9, 3)
    assert torch.equal(near.competitors, every.competitors[:, :3])
    assert (near.estimate >= every.estimate).all()
    seen: list[Tensor] = []

    def watched(points: Tensor) -> Tensor:
        seen.append(points.detach())
        return model(points)

    sampled_margins(watched, x, label, settings=Sampling(clip=True), data_range=(0.0, 1.0))
    assert float(torch.cat(seen).min()) >= 0
    assert float(torch.cat(seen).max()) <= 1


def test_the_extreme_value_score() -> None:
    pytest.importorskip("scipy")
    model = relu_network((6, 16, 4), 2)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = model(x).argmax(dim=1)
    settings = {"points": 16, "blocks": 20, "radius": 3.0}
    plain = sampled_margins(model, x, label, settings=Sampling(**settings))  # type: ignore[arg-type]
    score = sampled_margins(
        model,
        x,
        label,
        settings=Sampling(extreme_value=True, **settings),  # type: ignore[arg-type]
    )
    assert (score.lipschitz >= plain.lipschitz).all()
    assert (score.estimate <= plain.estimate).all()
    # A linear model's blocks have one maximum, which is the location.
    linear = linear_model()
    points, classes = correct_points(linear, 3)
    settings["radius"] = 50.0
    fitted = sampled_margins(
        linear,
        points,
        classes,
        settings=Sampling(extreme_value=True, **settings),  # type: ignore[arg-type]
    )
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


def test_certification_refuses_other_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2)).double()
    x, label = sample_plane(model, 2)
    with pytest.raises(TypeError, match="GELU"):
        certified_margins(model, x, label)


def test_certification_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4),
    ).double().eval()  # fmt: skip
    x = torch.rand(4, 1, 8, 8).double()
    label = model(x).argmax(dim=1)
    for p in (2.0, math.inf):
        certified = certified_margins(model, x, label, p=p)
        attack = nearest_adversarial(model, x, label, p=p).distance
        assert (certified > 0).all()
        assert (certified <= attack).all()


@pytest.mark.parametrize(
    "settings",
    [
        lambda: Sampling(points=0),
        lambda: Sampling(radius=0.0),
        lambda: Sampling(extreme_value=True, blocks=2),
        lambda: DistanceAttack(steps=0),
        lambda: DistanceAttack(radius_change=1.0),
        lambda: Certification(bisections=0),
    ],
)
def test_settings_that_make_no_sense(settings: object) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        settings()  # type: ignore[operator]
