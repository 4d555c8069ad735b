"""A network and data that several processes measure, and what must be the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from measurement.networks import relu_network
from torch import Tensor, nn

from margin_ext.bounds import MinimumDistance, Sampled
from margin_ext.measurement import MarginReport, RobustAccuracy

__all__ = ["BOUNDS", "COUNT", "EPS", "digest", "make_data", "make_model"]

BOUNDS = (MinimumDistance(steps=6, targets=1, bisections=4), Sampled(points=8))
EPS = (0.1, 0.3)
COUNT = 37


def make_model() -> nn.Sequential:
    # In float32 a batch of another size would round otherwise.
    return relu_network((6, 16, 4)).float()


def make_data(count: int = COUNT) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = make_model()(x).argmax(dim=1)
    y[::9] = 0
    return x, y


def digest(found: MarginReport | RobustAccuracy) -> str:
    """All that depends on the samples, to the bit."""
    values: dict[str, Any]
    if isinstance(found, MarginReport):
        values = {**found.columns(), "settings": found.settings, "exact": found.exact}
    else:
        values = {**found.distance, "correct": found.correct, "further": found.further}
        values |= {"random": found.random, "settings": found.settings, "all": str(found)}
    kept = {
        name: (str(value.dtype), value.tobytes().hex()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
    return repr(kept)
