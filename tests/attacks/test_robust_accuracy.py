from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from measurement.networks import linear_model, relu_network
from torch import Tensor, nn

from margin_ext.attacks import (
    ATTACKS,
    PGD,
    AttackLoss,
    AttackResult,
    register_attack,
    resolve_attacks,
)
from margin_ext.bounds import MinimumDistance
from margin_ext.measurement import measure, robust_accuracy
from margin_ext.measurement.masking import NOT_THE_GAP
from margin_ext.models.evaluation_mode import Model
from margin_ext.reference import linear_margin
from margin_ext.threat import ThreatModel


def samples(model: nn.Module, count: int, dims: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, dims, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, model(x).argmax(dim=1).detach()


def several(**settings: int) -> list[PGD]:
    return [PGD(loss=loss, **settings) for loss in get_args(AttackLoss)]  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("loss", get_args(AttackLoss))
def test_two_class_linear_models_exactly(p: float, loss: AttackLoss) -> None:
    model = linear_model(classes=2)
    x, y = samples(model, 60, 12)
    margin = linear_margin(model.weight, model.bias, x, y, p=p).detach()
    radii = [float(margin.quantile(q)) for q in (0.2, 0.5, 0.9)]
    attack = PGD(loss=loss, random_start=False)
    result = robust_accuracy(model, (x, y), radii, attacks=[attack], p=p)
    for eps, share in zip(radii, result.curve(loss), strict=True):
        assert share == pytest.approx(float((margin > eps * (1 + 1e-6)).double().mean()), abs=0.02)
    assert result.accuracy == 1.0


def test_adversarial_examples_keep_to_ball_and_range() -> None:
    model = relu_network((8, 16, 4))
    x, y = samples(model, 40, 8)
    std = torch.linspace(0.5, 2.0, 8).double()
    for p in (2.0, math.inf):
        threat = ThreatModel(p=p, data_range=(0.0, 1.0), input_std=std)
        robust, points = PGD(steps=10, restarts=2)(model, x, y, 0.4, threat=threat)
        assert not bool(robust.all())
        distance = torch.linalg.vector_norm((points - x) * std, p, dim=1)
        assert float(distance.max()) <= 0.4 * (1 + 1e-9)
        assert float(points.min()) >= 0
        assert float(points.max()) <= 1
        assert (model(points).argmax(dim=1) != y).equal(~robust)
        assert torch.equal(points[robust], x[robust])


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_projection_is_the_nearest_point(p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    eps = torch.rand(20, generator=generator, dtype=torch.float64)
    threat = ThreatModel(p=p)
    moved = threat.project(x, center, eps)
    inside = torch.linalg.vector_norm(moved - center, p, dim=1) <= eps * (1 + 1e-12)
    assert bool(inside.all())
    again = threat.project(moved, center, eps)
    torch.testing.assert_close(again, moved)
    near = torch.linalg.vector_norm(x - center, p, dim=1) <= eps
    assert torch.equal(moved[near], x[near])
    # Of the ball's points none is nearer: the line from x meets a face that supports the ball.
    for _ in range(200):
        other = threat.project(
            center + torch.randn(20, 5, generator=generator, dtype=torch.float64), center, eps
        )
        inner = ((x - moved) * (other - moved)).sum(dim=1)
        assert (inner <= 1e-9).all()


def test_robust_accuracy_falls_with_the_radius_and_with_more_attacks() -> None:
    model = relu_network((8, 16, 4))
    data = samples(model, 80, 8)
    result = robust_accuracy(model, data, [0.3, 0.05, 0.1], attacks=several(restarts=2))
    assert result.eps == (0.05, 0.1, 0.3)
    for name in ("gap", "cross_entropy", "dlr", "random", "worst"):
        curve = result.curve(name)
        assert list(curve) == sorted(curve, reverse=True)
        assert all(w <= c for w, c in zip(result.curve(), curve, strict=True))


def test_two_runs_are_equal_bit_for_bit_however_batched() -> None:
    model = relu_network((8, 16, 4))
    data = samples(model, 30, 8)
    attacks = several(steps=5, restarts=2, seed=7)
    first = robust_accuracy(model, data, [0.1, 0.2], attacks=attacks, seed=7)
    torch.rand(3)
    again = robust_accuracy(model, data, [0.1, 0.2], attacks=attacks, seed=7)
    split = robust_accuracy(model, data, [0.1, 0.2], attacks=attacks, seed=7, batch_size=7)
    for name in first.distance:
        assert (first.distance[name] == again.distance[name]).all()
        assert (first.robust(name) == split.robust(name)).all()
    assert (first.random == again.random).all()
    assert first.diagnosis == again.diagnosis


class Scaled(nn.Module):
    """The same decisions with logits so large that the softmax saturates."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner = inner
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return self.factor * z


class Staircase(nn.Module):
    """Rounds its input: the gradient is 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner((16 * x).round() / 16)
        return z


class Trapped(nn.Module):
    """The gradient points the wrong way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(2 * x.detach() - x)
        return z


def trained() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    centers = torch.tensor([[0.2, 0.2, 0.5], [0.8, 0.3, 0.5], [0.5, 0.8, 0.2]])
    y = torch.arange(240) % 3
    x = (centers[y] + 0.05 * torch.randn(240, 3)).clamp(0, 1)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (x, y)


def test_a_robust_model_is_not_suspected() -> None:
    model, data = trained()
    result = robust_accuracy(
        model, data, [0.05, 0.15], attacks=["gap", "cross_entropy"], data_range=(0.0, 1.0)
    )
    assert result.curve("gap")[0] > 0.9
    assert result.diagnosis is not None
    assert not result.diagnosis.gap_masked
    assert not result.diagnosis.cross_entropy_masked
    assert result.diagnosis.line_excess == 0
    assert result.diagnosis.moved == 0
    # Plain values: a report in JSON takes them as they are.
    assert type(result.diagnosis.random_excess) is float
    assert type(result.diagnosis.cross_entropy_excess) is float
    assert "No sign of gradient masking" in str(result)


def test_a_saturated_softmax_is_caught_and_the_gap_stands() -> None:
    model, data = trained()
    losses = ["gap", "cross_entropy"]
    plain = robust_accuracy(model, data, [0.05, 0.3], attacks=losses, data_range=(0.0, 1.0))
    masked = robust_accuracy(
        Scaled(model, 1e4), data, [0.05, 0.3], attacks=losses, data_range=(0.0, 1.0)
    )
    assert masked.diagnosis is not None
    assert masked.diagnosis.cross_entropy_masked
    assert not masked.diagnosis.gap_masked
    assert masked.diagnosis.cross_entropy_underflow > 0.9
    assert masked.curve("cross_entropy")[1] > masked.curve("gap")[1] + 0.3
    assert masked.curve("gap") == pytest.approx(plain.curve("gap"), abs=0.02)
    text = str(masked)
    assert "PGD on the cross-entropy (!)" in text
    assert NOT_THE_GAP in text


@pytest.mark.parametrize("hide", [Staircase, Trapped])
def test_hidden_gradients_are_caught(hide: type[nn.Module]) -> None:
    model, data = trained()
    masked = robust_accuracy(hide(model), data, [0.3, 0.6], data_range=(0.0, 1.0))
    assert masked.diagnosis is not None
    assert masked.diagnosis.gap_masked
    assert "hidden" in str(masked)


def test_saving(tmp_path: Path) -> None:
    model, data = trained()
    result = robust_accuracy(model, data, 0.1, attacks=several(steps=3))
    saved = json.loads(result.save(tmp_path / "sub" / "robust.json").read_text())
    assert saved["robust_accuracy"]["gap"] == list(result.curve("gap"))
    assert saved["settings"]["gap"]["steps"] == 3
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["robust.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1.0}, "eps must be"),
        ({"eps": []}, "at least one radius"),
        ({"p": 3}, "p = 1, p = 2 and p = inf"),
        ({"attacks": ["hinge"]}, "attacks must be from .*cross_entropy, dlr, gap, nearest"),
        ({"attacks": []}, "at least one attack"),
        ({"attacks": ["gap", PGD()]}, "different names"),
        ({"data_range": (0.2, 0.3)}, "outside the stated data range"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    model = relu_network((8, 16, 4))
    arguments: dict[str, object] = {"eps": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        robust_accuracy(model, samples(model, 4, 8), **arguments)  # type: ignore[arg-type]


def test_a_class_in_place_of_an_attack_is_refused() -> None:
    model = relu_network((8, 16, 4))
    with pytest.raises(TypeError, match=r"attacks must be names or objects, .*write PGD\("):
        robust_accuracy(model, samples(model, 4, 8), eps=0.1, attacks=[PGD])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps and restarts"),
        ({"relative_step": 0.0}, "relative_step"),
        ({"loss": "hinge"}, "loss must be from gap, cross_entropy, dlr"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**change)


class TowardTheMean:
    """An attack that a user might add, in one file."""

    name, title = "toward_mean", "toward the mean image"

    def check(self, threat: ThreatModel) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"steps": 1}

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> AttackResult:
        radius = inputs.new_full(target.shape, eps)
        point = threat.project(inputs.mean(dim=0).expand_as(inputs), inputs, radius)
        return AttackResult(model(point).argmax(dim=1) == target, point)


def test_an_attack_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACKS, "makers", dict(ATTACKS.makers))
    register_attack(TowardTheMean)
    model, data = trained()
    result = robust_accuracy(model, data, [0.01, 2.0], attacks=["toward_mean", "gap"])
    assert result.curve("toward_mean")[1] < 0.5 < result.curve("toward_mean")[0]
    assert "toward the mean image" in str(result)
    assert result.to_dict()["settings"]["toward_mean"] == {"steps": 1}


def test_seeds_of_attacks_by_name() -> None:
    assert resolve_attacks(["gap"], seed=3) == (PGD(seed=3),)
    assert resolve_attacks([PGD(steps=5)], seed=3) == (PGD(steps=5),)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_default_attack_on_linear_models_exactly(p: float) -> None:
    model = linear_model(classes=4)
    x, y = samples(model, 60, 12)
    margin = linear_margin(model.weight, model.bias, x, y, p=p).detach()
    radii = [float(margin.quantile(q)) for q in (0.2, 0.5, 0.9)]
    result = robust_accuracy(model, (x, y), radii, p=p)
    for eps, fraction in zip(radii, result.curve(), strict=True):
        assert fraction == pytest.approx(
            float((margin > eps * (1 + 1e-6)).double().mean()), abs=0.02
        )
    # What it found lies no nearer than the true distance.
    found = torch.from_numpy(result.distance["nearest"])
    assert (found >= margin * (1 - 1e-6)).all()


def test_distances_of_measure_count_and_are_never_contradicted() -> None:
    model, data = trained()
    common: dict[str, Any] = {"data_range": (0.0, 1.0)}
    report = measure(model, data, bounds=["minimum_distance"], **common)
    weak = [PGD(steps=1, relative_step=0.1)]
    radii = [0.1, 0.2, 0.3]
    alone = robust_accuracy(model, data, radii, attacks=weak, diagnose_masking=False, **common)
    shared = robust_accuracy(
        model, data, radii, attacks=weak, diagnose_masking=False, report=report, **common
    )
    beyond = report.first.bounds["minimum_distance"][:, None] > np.array(radii)
    expected = (alone.robust() & beyond).mean(axis=0)
    assert shared.curve() == pytest.approx(tuple(expected))
    assert shared.curve()[2] < alone.curve()[2] - 0.1
    for change, message in (
        ({"p": "inf"}, "report must be in linf"),
        ({"data_range": None}, "report must be in l2"),
    ):
        with pytest.raises(ValueError, match=message):
            robust_accuracy(model, data, 0.1, report=report, **{**common, **change})
    other = (data[0][:100], data[1][:100])
    with pytest.raises(ValueError, match="other samples"):
        robust_accuracy(model, other, 0.1, report=report, **common)
    outside = measure(model, data, bounds=[MinimumDistance(in_range=False)], **common)
    with pytest.raises(ValueError, match="leave the data range"):
        robust_accuracy(model, data, 0.1, report=outside, **common)


def test_what_a_large_radius_finds_counts_at_smaller_ones() -> None:
    class OnlyLarge(TowardTheMean):
        """Finds nearby points where it is asked for a large radius."""

        name = "only_large"

        def __call__(
            self,
            model: Model,
            inputs: Tensor,
            target: Tensor,
            eps: float,
            *,
            threat: ThreatModel,
            indices: Sequence[int],
        ) -> AttackResult:
            if eps < 0.5:
                return AttackResult(torch.ones_like(target, dtype=torch.bool), inputs)
            return PGD()(model, inputs, target, 0.3, threat=threat, indices=indices)

    model, data = trained()
    result = robust_accuracy(model, data, [0.3, 1.0], attacks=[OnlyLarge()])
    assert result.curve("only_large")[0] == result.curve("only_large")[1] < 0.9
