"""Certified bounds: never above a true distance, tight where branches are looked at, or refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from measurement.networks import exact_margin, relu_network, sample_plane
from torch import Tensor, nn

from margin_ext.bounds import Certified, MinimumDistance
from margin_ext.bounds.relaxation import Relaxation
from margin_ext.bounds.relaxed_network import relaxed_network
from margin_ext.models.resnet import ResidualBlock
from margin_ext.threat import ThreatModel

NORMS = (1.0, 2.0, math.inf)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    return norm


def flat(units: int = 98) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(units, 4)]


NETWORKS = {
    "pooled": lambda: [
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ],
    "pooled before": lambda: [nn.MaxPool2d(3, 2), nn.Conv2d(2, 3, 2), nn.ReLU(), *flat(12)],
    "batch norm": lambda: [
        nn.Conv2d(2, 3, 3, stride=2, padding=1), batch_norm(3), nn.ReLU(),
        nn.AvgPool2d(2), *flat(12),
    ],
    "leaky": lambda: [nn.Flatten(), nn.Linear(98, 8), nn.LeakyReLU(0.2), nn.Linear(8, 4)],
    "softplus": lambda: [nn.Flatten(), nn.Linear(98, 8), nn.Softplus(beta=3), nn.Linear(8, 4)],
    "circular": lambda: [
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), *flat(8),
    ],
    "grouped": lambda: [nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.ReLU(), *flat(36)],
    "one by one": lambda: [nn.Flatten(1, 2), nn.Conv1d(14, 3, 2), nn.ReLU(), *flat(18)],
    "activation first": lambda: [nn.ReLU(), *flat(), nn.ReLU()],
    "three layers": lambda: [
        nn.Flatten(), nn.Linear(98, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4),
    ],
}  # fmt: skip


def network(name: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*NETWORKS[name]()).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_relaxed_network_computes_what_the_model_computes(name: str) -> None:
    model, x = network(name).double(), images(3).double() - 0.4
    h = x
    for stage in relaxed_network(model, x):
        h = stage(h)
    torch.testing.assert_close(h, model(x).detach())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("p", NORMS)
def test_no_attack_comes_nearer(name: str, p: float) -> None:
    model, x = network(name), images(2)
    label = model(x).argmax(dim=1).detach()
    threat = ThreatModel(p=p, data_range=(0.0, 1.0), input_std=[0.5, 2.0])
    certified = Certified()(model, x, label, threat=threat).distance
    for in_range in (True, False):
        attack = MinimumDistance(steps=20, in_range=in_range)(model, x, label, threat=threat)
        assert (certified <= attack.distance).all()
    assert float((certified / attack.distance).min()) > 0.1


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize(("sizes", "seeds"), [((2, 5, 3), (0, 6)), ((2, 3, 3, 3), (4, 7))])
def test_branches_come_close_to_the_exact_distance(
    p: float, sizes: tuple[int, ...], seeds: tuple[int, ...]
) -> None:
    for seed in seeds:
        model = relu_network(sizes, seed)
        x, label = sample_plane(model, 3)
        exact = torch.tensor(
            [exact_margin(model, a, int(b), p) for a, b in zip(x, label, strict=True)],
            dtype=torch.float64,
        )
        threat = ThreatModel(p=p)
        plain = Certified()(model, x, label, threat=threat).distance
        found = Certified(branches=1000)(model, x, label, threat=threat).distance
        assert (found <= exact * (1 + 1e-9)).all()
        assert (found >= plain).all()
        reached = torch.isfinite(exact)
        assert (found[reached] >= 0.97 * exact[reached]).all()


def test_branches_of_a_network_with_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    x = images(2)[:, :1, :5, :5]
    label = model(x).argmax(dim=1).detach()
    plain = Certified()(model, x, label, threat=ThreatModel()).distance
    found = Certified(branches=100)(model, x, label, threat=ThreatModel()).distance
    attack = MinimumDistance(in_range=False)(model, x, label, threat=ThreatModel()).distance
    assert (found >= plain).all()
    assert (found > plain).any()
    assert (found <= attack).all()


def test_chosen_slopes_gain_and_never_lose() -> None:
    gains = []
    for seed in range(4):
        model = relu_network((2, 16, 16, 3), seed)
        x, label = sample_plane(model, 4)
        threat = ThreatModel(p=2)
        usual = Certified(slopes=0)(model, x, label, threat=threat).distance
        chosen = Certified()(model, x, label, threat=threat).distance
        assert (chosen >= usual).all()
        gains.append(chosen / usual)
    assert float(torch.cat(gains).mean()) > 1.01


def test_limits_of_branch_and_bound() -> None:
    model = relu_network((2, 12, 12, 3), 3)
    x, label = sample_plane(model, 2)
    threat = ThreatModel(p=2)
    plain = Certified()(model, x, label, threat=threat).distance
    short = Certified(branches=10**9, seconds=1e-9)(model, x, label, threat=threat).distance
    assert torch.equal(short, plain)
    few, more = (
        Certified(branches=count)(model, x, label, threat=threat).distance for count in (100, 400)
    )
    assert (plain <= few).all()
    assert (few <= more).all()
    assert (few < more).any()


def test_no_answer_depends_on_the_rows_or_on_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = network("pooled"), images(2)
    label = model(x).argmax(dim=1).detach()
    right = Certified(branches=4)(model, x, label, threat=ThreatModel()).distance
    assert "certifying" not in capsys.readouterr().err
    bound = Certified(branches=4, rows=600, progress=True)
    again = bound(model, x, label, threat=ThreatModel()).distance
    assert "certifying" in capsys.readouterr().err
    torch.testing.assert_close(again, right, rtol=1e-4, atol=0)
    assert "progress" not in bound.settings()


def exact_gap(model: nn.Sequential, x: Tensor, spec: list[int]) -> Fraction:
    """spec @ logits in exact arithmetic."""
    h = [Fraction(float(value)) for value in x]
    for layer in model:
        if isinstance(layer, nn.ReLU):
            h = [max(value, Fraction(0)) for value in h]
            continue
        assert isinstance(layer, nn.Linear)
        h = [
            sum(Fraction(w) * v for w, v in zip(row, h, strict=True)) + Fraction(b)
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
    return sum((s * value for s, value in zip(spec, h, strict=True)), Fraction(0))


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
def test_linear_bounds_hold_in_exact_arithmetic(scale: float) -> None:
    """Large weights that cancel: what is rounded exceeds the gaps."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        ).double()
        with torch.no_grad():
            # Pairs of units that nearly cancel each other.
            model[2].weight.mul_(scale)  # type: ignore[operator]
            model[2].weight[:, 1::2] = -model[2].weight[:, ::2]  # type: ignore[index]
            model[0].weight[1::2] = model[0].weight[::2] * (1 + 1e-13)  # type: ignore[index]
            model[0].bias[1::2] = model[0].bias[::2]  # type: ignore[index]
        x = torch.randn(1, 3, dtype=torch.float64)
        relaxation = Relaxation(relaxed_network(model, x), x, ThreatModel(), rows=64, unit=2.0**-53)
        rows = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        for radius in (0.0, 1e-3):
            ball = relaxation.ball(radius)
            forms = relaxation.forms(rows, ball, relaxation.lines(ball))
            for row, low in zip(rows, forms.at_center, strict=True):
                exact = exact_gap(model, x[0], [int(value) for value in row])
                assert Fraction(float(low)) <= exact
                if scale == 1.0 and radius == 0:
                    assert float(exact) - float(low) < 1e-11


def test_rounded_models_keep_their_class_in_the_whole_ball() -> None:
    """Offsets of 1e3 leave float32 four digits: points beyond rounding are not certified."""
    zero = 0
    for seed in range(30):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3))
        x = torch.randn(1, 50)
        with torch.no_grad():
            model[0].bias += 1e3  # type: ignore[operator]
            model[2].weight[:, ::2] = -model[2].weight[:, 1::2]  # type: ignore[index]
            model[2].bias.zero_()
        logits = model(x).detach()
        label = logits.argmax(dim=1)
        radius = Certified()(model, x, label, threat=ThreatModel()).distance
        zero += int(radius == 0)
        points = torch.randn(2000, 50)
        points = points / points.norm(dim=1, keepdim=True) * radius * (1 - 1e-6)
        found = model(x + points)
        others = found.scatter(1, label.expand(2000).unsqueeze(1), -math.inf).amax(dim=1)
        assert (found[:, label[0]] > others).all() or float(radius) == 0
    assert zero < 25


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GELU(), "GELU"),
        (nn.Tanh(), "Tanh"),
        (nn.Softmax(1), "Softmax"),
        (nn.LayerNorm(7), "LayerNorm"),
        (nn.LeakyReLU(1.5), "LeakyReLU"),
        (nn.BatchNorm2d(2, track_running_stats=False), "BatchNorm2d"),
        (nn.MaxPool2d(3, padding=1), "MaxPool2d without padding"),
        (nn.MaxPool2d(3, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, divisor_override=3), "AvgPool2d"),
        (ResidualBlock(2, 2), "ResidualBlock"),
    ],
)
def test_layers_that_are_not_covered_are_named(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).eval()
    x = images(1)
    model(x)
    with pytest.raises(TypeError, match=f"certified bounds cover .*{message}"):
        Certified()(model, x, torch.tensor([0]), threat=ThreatModel())


def test_smooth_activations_are_not_split() -> None:
    model, x = network("softplus"), images(1)
    with pytest.raises(TypeError, match="branch and bound is for ReLU and LeakyReLU"):
        Certified(branches=5)(model, x, torch.tensor([0]), threat=ThreatModel())


@pytest.mark.parametrize("wrong", [{"slopes": -1}, {"branches": -1}, {"seconds": 0.0}, {"rows": 0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Certified(**wrong)  # type: ignore[arg-type]
