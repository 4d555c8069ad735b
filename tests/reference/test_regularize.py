"""Each regularizer's values by hand, and its slopes, at the kinks too."""

from __future__ import annotations

import math

import pytest
import torch

from margin_ext.reference import regularize
from margin_ext.regularizers import Regularizer, resolve_regularizer

T = [-10.0, -2.0, -1.0, 0.0, 1.0, 2.0, 10.0]


@pytest.mark.parametrize(
    ("phi", "values", "slopes"),
    [
        # Both ends of the ramp still push, as torch.clamp has it and the authors' code.
        (Regularizer.ramp(0, 2), [2, 2, 2, 2, 1, 0, 0], [0, 0, 0, -1, -1, -1, 0]),
        (Regularizer.ramp(-2, 0), [2, 2, 1, 0, 0, 0, 0], [0, -1, -1, -1, 0, 0, 0]),
        (Regularizer.hinge(1), [11, 3, 2, 1, 0, 0, 0], [-1, -1, -1, -1, -1, 0, 0]),
        (Regularizer.linear(), [10, 2, 1, 0, -1, -2, -10], [-1] * 7),
        (
            Regularizer.softplus(2),
            [2 * math.log1p(math.exp(-t / 2)) for t in T],
            [-1 / (1 + math.exp(t / 2)) for t in T],
        ),
        (
            Regularizer.exponential(2),
            [math.exp(-t / 2) for t in T],
            [-math.exp(-t / 2) / 2 for t in T],
        ),
    ],
    ids=lambda x: x.kind if isinstance(x, Regularizer) else "",
)
def test_values_and_slopes(phi, values, slopes):
    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    found = regularize(t, phi)
    found.sum().backward()
    assert found.tolist() == pytest.approx(values, rel=1e-14)
    assert t.grad.tolist() == pytest.approx(slopes, rel=1e-14)


def test_the_large_margin_form_of_elsayed_et_al():
    """On softmax probabilities with gamma = 5, alpha = 4: max over what is clipped at 15 and -5.

    It is the ramp (lo, hi) = (-15, 5) less its own height at t = gamma, with margins d of their
    published test.
    """
    d = torch.tensor([-20.0, -15, -3, 0, 4, 5, 9])
    found = regularize(d, Regularizer.ramp(-15, 5)) - 5
    assert found.tolist() == [15, 15, 3, 0, -4, -5, -5]


@pytest.mark.parametrize("t", [-1e30, 1e30, -math.inf, math.inf])
@pytest.mark.parametrize("name", ["ramp", "negative_ramp", "hinge", "linear", "softplus"])
def test_no_nan_at_huge_margins(name, t):
    assert not regularize(torch.tensor(t), resolve_regularizer(name, 2.0)).isnan()
