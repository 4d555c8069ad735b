"""What the diagnosis of gradient masking says of models that hide gradients, and of honest ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from margin_ext.attacks import PGD
from margin_ext.measurement import MaskingDiagnosis, robust_accuracy
from margin_ext.measurement.masking import NOT_THE_GAP, MaskingSigns, diagnose
from margin_ext.measurement.masking_evidence import MaskingEvidence

DIMS, CLASSES = 48, 4
Data = tuple[Tensor, Tensor]
EPS = [0.9, 1.2]


@functools.lru_cache
def trained(activation: type[nn.Module] = nn.GELU, saturated: bool = False) -> nn.Module:
    with torch.enable_grad():
        return _trained(activation, saturated)


def _trained(activation: type[nn.Module], saturated: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIMS, 64), activation(), nn.Linear(64, CLASSES))
    x, y = data(512, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2000 if saturated else 30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@functools.lru_cache
def data(count: int = 120, seed: int = 2) -> Data:
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(CLASSES, DIMS, generator=generator)
    generator.manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    noise = 0.25 * torch.randn(count, DIMS, generator=generator)
    return (centers[y] + noise).clamp(0, 1), y


def judged(model: Callable[[Tensor], Tensor], samples: Any = None, **options: Any) -> Any:
    trained()
    arguments: dict[str, Any] = {"eps": EPS, "data_range": (0.0, 1.0), **options}
    found = robust_accuracy(model, data() if samples is None else samples, **arguments)
    assert found.diagnosis is not None
    return found


class PermutedGradient(torch.autograd.Function):
    """Rounds to levels; the backward pass mixes up the pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 255).round() / 255

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        order = torch.randperm(DIMS, generator=torch.Generator().manual_seed(5))
        return grad[:, order]


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        return (x * (levels - 1)).round() / (levels - 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def decoy(x: Tensor) -> Tensor:
    """One-hot outputs, and a weak linear function whose gradient leads nowhere."""
    weight = torch.randn(CLASSES, DIMS, generator=torch.Generator().manual_seed(3))
    decided = nn.functional.one_hot(trained()(x).argmax(dim=1), CLASSES).float()
    return decided + 0.01 * x @ weight.T


HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda x: trained()(PermutedGradient.apply(x)),
    "sin 300": lambda x: trained()(x + 0.05 * torch.sin(300 * x)),
    "sin 2000": lambda x: trained()(x + 0.02 * torch.sin(2000 * x)),
    "decoy": decoy,
    "rounded": lambda x: trained()((x * 15).round() / 15),
    "backward": lambda x: trained()(2 * x.detach() - x),
}


@pytest.mark.parametrize("name", HIDING)
def test_hidden_gradients_are_seen(name: str) -> None:
    found = judged(HIDING[name])
    assert found.diagnosis.gap_masked, found.diagnosis
    assert "gradients are hidden" in str(found)


@pytest.mark.parametrize("name", HIDING)
def test_hidden_gradients_are_seen_under_every_attack(name: str) -> None:
    attacks = [PGD(), PGD(loss="cross_entropy")]
    assert judged(HIDING[name], attacks=attacks).diagnosis.gap_masked


@pytest.mark.parametrize("where", ["dropout", "noise"])
def test_random_models_are_refused(where: str) -> None:
    model = trained()

    def forward(x: Tensor) -> Tensor:
        if where == "noise":
            return model(x + 0.1 * torch.randn_like(x))
        return model(nn.functional.dropout(x, 0.2, training=True))

    trained()
    with pytest.raises(ValueError, match=r"runs again|random"):
        robust_accuracy(forward, data(), EPS, data_range=(0.0, 1.0))


def without_alarm(found: MaskingDiagnosis) -> None:
    assert not found.gap_masked, found


@pytest.mark.parametrize(
    ("logits", "units"), [(1e-9, 1.0), (1e-9, 1e-9), (1e-3, 1e9), (1.0, 1e-9), (1.0, 255.0)]
)
def test_units_raise_no_alarm_and_change_no_figure(logits: float, units: float) -> None:
    plain = judged(trained())
    x, y = data()
    scaled = judged(
        lambda v: logits * trained()(v / units),
        (x * units, y),
        eps=[eps * units for eps in EPS],
        data_range=(0.0, units),
    )
    without_alarm(scaled.diagnosis)
    assert not scaled.diagnosis.cross_entropy_masked
    assert scaled.curve() == pytest.approx(plain.curve(), abs=0.02)


@pytest.mark.parametrize("logits", [1e3, 1e9])
def test_large_logits_saturate_only_the_cross_entropy(logits: float) -> None:
    plain = judged(trained())
    scaled = judged(lambda v: logits * trained()(v))
    without_alarm(scaled.diagnosis)
    assert scaled.diagnosis.cross_entropy_masked
    assert scaled.diagnosis.findings[-1] == NOT_THE_GAP
    assert scaled.curve() == pytest.approx(plain.curve(), abs=0.02)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_no_data_range_no_alarm(scale: float) -> None:
    x, y = data()
    found = judged(
        lambda v: trained()(v / scale),
        (x * scale, y),
        eps=[e * scale for e in EPS],
        data_range=None,
    )
    without_alarm(found.diagnosis)


@pytest.mark.parametrize(
    ("activation", "saturated"), [(nn.GELU, False), (nn.ReLU, False), (nn.ReLU, True)]
)
def test_honest_networks_raise_no_alarm(activation: type[nn.Module], saturated: bool) -> None:
    without_alarm(judged(trained(activation, saturated)).diagnosis)


@pytest.mark.parametrize("levels", [16, 256])
def test_quantised_inputs_with_usable_gradients_raise_no_alarm(levels: int) -> None:
    without_alarm(judged(lambda x: trained()(StraightThrough.apply(x, levels))).diagnosis)


class JpegLike(torch.autograd.Function):
    """Rounds the cosine coefficients of blocks of eight; the backward pass takes the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        k = torch.arange(8.0)
        basis = torch.cos(math.pi / 8 * (k + 0.5).unsqueeze(0) * k.unsqueeze(1)) / 2
        basis[0] /= math.sqrt(2)
        step = 0.05 * (1 + k)
        blocks = x.reshape(-1, DIMS // 8, 8) @ basis.to(x).T
        rounded = (blocks / step.to(x)).round() * step.to(x)
        return (rounded @ basis.to(x)).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Thermometer(torch.autograd.Function):
    """Codes of ten thresholds a pixel; the backward pass is that of the pixel itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x.unsqueeze(2) > torch.arange(10).to(x) / 10).to(x.dtype).flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.reshape(-1, DIMS, 10).mean(dim=2)


@functools.lru_cache
def on_codes() -> nn.Module:
    """A network of thermometer codes."""
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10 * DIMS, 64), nn.GELU(), nn.Linear(64, CLASSES))
        x, y = data(512, 1)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(Thermometer.apply(x)), y).backward()
            optimizer.step()
    return model.eval()


@functools.lru_cache
def distilled() -> nn.Module:
    """Trained at temperature 50 on a teacher's soft labels, and used at temperature 1."""
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(DIMS, 64), nn.GELU(), nn.Linear(64, CLASSES))
        x, _ = data(512, 1)
        soft = nn.functional.softmax(trained()(x).detach(), dim=1)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(400):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x) / 50, soft).backward()
            optimizer.step()
    return model.eval()


def test_two_levels_mislead_gradients_and_are_seen() -> None:
    """The gradient does not know how near a pixel is to its threshold; decisions do."""
    found = judged(lambda x: trained()(StraightThrough.apply(x, 2)))
    assert found.diagnosis.gap_masked
    assert found.diagnosis.decision_excess > 0.1
    # The alarm is true: the worst case lies far below what attacks along gradients leave.
    assert found.curve()[0] < found.curve("nearest")[0] - 0.1


def test_jpeg_like_inputs_raise_no_alarm() -> None:
    without_alarm(judged(lambda x: trained()(JpegLike.apply(x))).diagnosis)


def test_thermometer_codes_raise_no_alarm() -> None:
    model = on_codes()
    without_alarm(judged(lambda x: model(Thermometer.apply(x))).diagnosis)


def test_a_distilled_network_saturates_only_the_cross_entropy() -> None:
    found = judged(distilled()).diagnosis
    without_alarm(found)
    assert found.cross_entropy_masked


@pytest.mark.parametrize("name", ["permuted", "sin 2000", "decoy"])
def test_an_attack_without_gradients_breaks_more_where_they_are_hidden(name: str) -> None:
    found = judged(HIDING[name], attacks=[PGD()]).diagnosis
    assert found.decision_excess > 0.1
    assert "sees decisions only" in str(found)
    assert judged(trained(), attacks=[PGD()]).diagnosis.decision_excess <= 0.02


def test_neither_order_nor_size_of_batches_matters() -> None:
    x, y = data(40)
    order = y.argsort()
    whole = judged(trained(), (x, y))
    without_alarm(whole.diagnosis)
    one = judged(trained(), DataLoader(TensorDataset(x, y), batch_size=1))
    assert one.diagnosis.findings == whole.diagnosis.findings
    assert one.diagnosis.fall == pytest.approx(whole.diagnosis.fall, rel=1e-3)
    assert one.diagnosis.line_excess == pytest.approx(whole.diagnosis.line_excess, abs=0.02)
    for size in (7, 10):
        loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=size)
        without_alarm(judged(trained(), loader).diagnosis)


def test_few_samples_are_told() -> None:
    x, y = data()
    model = trained()
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)
    for count, few in ((1, True), (24, True), (25, False)):
        found = judged(model, (x[right[:count]], y[right[:count]])).diagnosis
        assert (found.count, found.too_few) == (count, few)
        assert ("Too few to tell" in str(found)) is few


def test_one_class_only_is_told() -> None:
    x, y = data()
    found = judged(trained(), (x[y == 0], y[y == 0])).diagnosis
    without_alarm(found)
    assert math.isnan(found.line_excess)
    assert "all samples have one class" in str(found)


def test_transfer_from_the_network_behind_is_seen() -> None:
    found = judged(decoy, attacks=[PGD()], transfer=trained()).diagnosis
    assert found.transfer_excess > 0.2
    assert "points made on the other model" in str(found)
    honest = judged(trained(), transfer=trained(nn.ReLU)).diagnosis
    without_alarm(honest)
    assert "transfer" not in str(honest)
    assert "transfer from another model" in str(judged(trained()).diagnosis)


def test_a_weak_attack_is_told_to_have_not_converged() -> None:
    found = judged(trained(), attacks=[PGD(steps=1, relative_step=0.01)]).diagnosis
    assert found.moved > 0.2
    assert "not converged" in str(found)
    assert judged(trained()).diagnosis.moved <= 0.03


SIGNS = MaskingSigns(
    cross_entropy_underflow=0.0,
    gap_underflow=0.0,
    line_excess=0.0,
    decision_excess=0.0,
    fall=1.0,
    jump=0.0,
    transfer_excess=math.nan,
    moved=0.0,
    not_looked_at=(),
)
EVIDENCE = MaskingEvidence(tuple(range(96)), torch.ones(96).numpy(), SIGNS)


def from_curves(gap: list[float], cross_entropy: list[float]) -> MaskingDiagnosis:
    curves = {"gap": gap, "cross_entropy": cross_entropy, "random": [0.9] * len(gap)}
    return diagnose(EVIDENCE, curves, 1000)


def test_agreement_finds_nothing() -> None:
    assert from_curves([0.8, 0.4], [0.81, 0.41]).findings == ()


def test_a_weaker_gap_attack_at_one_radius_is_told_but_is_no_masking() -> None:
    found = from_curves([0.9, 0.6], [0.9, 0.5])
    assert "lower column counts" in found.findings[0]
    assert not found.gap_masked


def test_a_weaker_gap_attack_everywhere_is_masking() -> None:
    assert from_curves([0.9, 0.6], [0.8, 0.5]).gap_masked


def test_a_weaker_cross_entropy_attack_leaves_the_gap_column() -> None:
    found = from_curves([0.8, 0.3], [0.8, 0.9])
    assert found.cross_entropy_masked
    assert not found.gap_masked
    assert found.findings[-1] == NOT_THE_GAP
