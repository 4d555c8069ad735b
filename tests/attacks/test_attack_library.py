from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from measurement.networks import relu_network

from margin_ext.bounds import FoolboxDistance, MinimumDistance
from margin_ext.models.evaluation_mode import evaluation_mode
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
