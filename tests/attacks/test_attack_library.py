from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from measurement.networks import relu_network
from torch import nn

from margin_ext.attacks import AutoAttack
from margin_ext.bounds import FoolboxDistance, MinimumDistance
from margin_ext.measurement import robust_accuracy
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.reference import linear_margin
from margin_ext.threat import ThreatModel

HERE = importlib.util.find_spec("foolbox") is not None


@pytest.mark.skipif(not HERE, reason="foolbox is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_ours_is_no_weaker_than_foolbox(p: float) -> None:
    model = relu_network((8, 24, 5), 3).float().eval()
    x = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    label = model(x).argmax(dim=1)
    threat = ThreatModel(p=p, data_range=(0.0, 1.0))
    with evaluation_mode(model):
        ours = MinimumDistance()(model, x, label, threat=threat)
    theirs = FoolboxDistance()(model, x, label, threat=threat)
    both = torch.isfinite(ours.distance) & torch.isfinite(theirs.distance)
    assert int(both.sum()) > 20
    assert float(ours.distance[both].mean()) <= 1.02 * float(theirs.distance[both].mean())


@pytest.mark.skipif(HERE, reason="foolbox is installed")
def test_the_missing_library_is_named() -> None:
    model = relu_network((8, 24, 5), 3)
    with pytest.raises(ImportError, match=r"margin_ext\[attacks\]"):
        FoolboxDistance()(
            model,
            torch.rand(2, 8).double(),
            torch.tensor([0, 1]),
            threat=ThreatModel(data_range=(0.0, 1.0)),
        )


AUTOATTACK = importlib.util.find_spec("pyautoattack") is not None


@pytest.mark.skipif(not AUTOATTACK, reason="pyautoattack is not installed")
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_autoattack_on_a_linear_network_whose_margins_are_known(p: float, classes: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3 * 784, classes)
    std, mean = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.3, 0.5, 0.4])
    pixels = 0.3 + 0.4 * torch.rand(20, 3, 28, 28)
    x = (pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    model = nn.Sequential(nn.Flatten(), linear)
    y = model(x).argmax(dim=1)
    scaled = linear.weight / std.repeat_interleave(784)
    shifted = linear.bias - linear.weight @ (mean / std).repeat_interleave(784)
    margin = linear_margin(scaled, shifted, pixels.flatten(1), y, p=p).detach()
    # Small enough for the range to play no part, except in l1, where a few pixels move far.
    eps = float(margin.quantile(0.3))
    options = {
        "p": p, "input_std": std, "data_range": (-mean / std, (1 - mean) / std),
        "diagnose_masking": False,
    }  # fmt: skip
    attacks = [AutoAttack(queries=50), "nearest"]
    found = robust_accuracy(model, (x, y), eps, attacks=attacks, **options)
    truth = float((margin > eps).float().mean())
    if p > 1:
        assert found.curve("autoattack")[0] == pytest.approx(truth, abs=0.04)
    assert truth - 0.04 <= found.curve("nearest")[0] <= found.curve("autoattack")[0] + 0.06


@pytest.mark.skipif(AUTOATTACK, reason="pyautoattack is installed")
def test_autoattack_is_named_where_it_is_missing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(ImportError, match=r"margin_ext\[attacks\]"):
        robust_accuracy(model, data, 0.1, attacks=["autoattack"], data_range=(0.0, 1.0))


def test_what_autoattack_cannot_do() -> None:
    model = nn.Linear(4, 3)
    data = torch.rand(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="needs data_range"):
        robust_accuracy(model, data, 0.1, attacks=["autoattack"])
    with pytest.raises(ValueError, match=r"images \[B, Ch, H, W\], got \[2, 4\]"):
        AutoAttack()(model, *data, 0.1, threat=ThreatModel(data_range=(0.0, 1.0)))


def test_parts_of_autoattack_are_named() -> None:
    with pytest.raises(ValueError, match=r"parts must be from apgd-ce, .*, got pgd"):
        AutoAttack(parts=("apgd-ce", "pgd"))
    with pytest.raises(ValueError, match="got none"):
        AutoAttack(parts=())
    assert AutoAttack(parts=("apgd-ce",)).settings()["parts"] == ("apgd-ce",)
