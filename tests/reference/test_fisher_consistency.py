"""Which regularizers keep the Bayes class (docs/fisher-consistency.md): risks, minimised by search.

The conditional risk at a point with class probabilities eta is sum_c eta_c (CE_c + mu phi(a_c)). It
is not convex and has kinks, so it is searched on grids that close in on the best points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from margin_ext.reference import additive_margin_loss, logit_gap, regularize
from margin_ext.regularizers import Regularizer, regularizer_names, resolve_regularizer

TAU = 2.0
REACH = 12.0
# A minimiser's logits are found to about this.
RESOLUTION = 1e-3


def conditional_risk(z: Tensor, eta: Tensor, phi: Regularizer, mu: float) -> Tensor:
    """Of logits z [N, C] for class probabilities eta [C]."""
    risk = torch.zeros(len(z), dtype=z.dtype)
    for label, probability in enumerate(eta.tolist()):
        target = torch.full((len(z),), label)
        ce = torch.nn.functional.cross_entropy(z, target, reduction="none")
        risk += probability * (ce + mu * regularize(logit_gap(z, target).gap, phi))
    return risk


def additive_risk(z: Tensor, eta: Tensor, lowered: float, mu: float) -> Tensor:
    """Of the additive margin, every class's logit lowered by as much: a norm of 1."""
    risk = torch.zeros(len(z), dtype=z.dtype)
    norm = torch.ones(len(z), 1, dtype=z.dtype)
    for label, probability in enumerate(eta.tolist()):
        target = torch.full((len(z),), label)
        out = additive_margin_loss(z, target, norm, tau=lowered, mu=mu, reduction="none")
        risk += probability * out.loss
    return risk


def minimiser(eta: Tensor, phi: Regularizer, mu: float) -> Tensor:
    """Logits [C] of the smallest risk; the last one is 0, since a common shift changes nothing."""
    return smallest(eta, partial(conditional_risk, eta=eta, phi=phi, mu=mu))


def smallest(eta: Tensor, risk_of: Callable[[Tensor], Tensor]) -> Tensor:
    free = len(eta) - 1
    points = {1: 2001, 2: 121, 3: 31}[free]
    centers, half = torch.zeros(1, free, dtype=torch.float64), REACH
    while True:
        line = torch.linspace(-half, half, points, dtype=torch.float64)
        offsets = torch.cartesian_prod(*[line] * free).reshape(-1, free)
        candidates = (centers.unsqueeze(1) + offsets).reshape(-1, free).clamp(-REACH, REACH)
        z = torch.cat([candidates, torch.zeros(len(candidates), 1, dtype=torch.float64)], dim=1)
        risk = risk_of(z)
        # Several of the best, because two valleys can be about as deep.
        best = risk.topk(4 if half > 0.1 else 1, largest=False).indices
        spacing = float(line[1] - line[0])
        if spacing < RESOLUTION / 4:
            return z[best[0]]
        centers, half = candidates[best], 2 * spacing


def probabilities(classes: int, count: int, seed: int) -> list[Tensor]:
    """Random, with no two largest so close that the search could not tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < count:
        eta = torch.rand(classes, generator=generator, dtype=torch.float64).log().neg()
        eta /= eta.sum()
        top = eta.topk(2).values
        if top[0] - top[1] > 0.02:
            found.append(eta)
    return found


def lead(z: Tensor, eta: Tensor) -> float:
    """The Bayes class's logit above the largest other one."""
    bayes = int(eta.argmax())
    others = torch.cat([z[:bayes], z[bayes + 1 :]])
    return float(z[bayes] - others.max())


@pytest.mark.parametrize("name", sorted(regularizer_names()))
@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_bayes_class_is_among_the_largest(name, mu, classes):
    """The rearrangement argument: for every one of them no other class comes out ahead."""
    phi = resolve_regularizer(name, TAU)
    for eta in probabilities(classes, 4, seed=classes):
        assert lead(minimiser(eta, phi, mu), eta) >= -RESOLUTION


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_ramp_keeps_the_bayes_class_alone_on_top(mu, classes):
    phi = resolve_regularizer("ramp", TAU)
    for eta in probabilities(classes, 6, seed=10 + classes):
        assert lead(minimiser(eta, phi, mu), eta) > 10 * RESOLUTION


def authors_tie(eta: Tensor, mu: float) -> bool:
    """Two classes: tied iff mu eta_2 >= eta_1 - 1/2 (the risk's slope at gap 0 from above)."""
    first, second = eta.sort(descending=True).values.tolist()
    return mu * second >= first - 0.5


@pytest.mark.parametrize("mu", [0.1, 0.5, 2.0])
def test_the_authors_code_ties_two_classes_that_are_nearly_as_likely(mu):
    phi = resolve_regularizer("negative_ramp", TAU)
    seen = set()
    for first in (0.51, 0.53, 0.56, 0.6, 0.7, 0.9, 0.97):
        eta = torch.tensor([1 - first, first], dtype=torch.float64)
        tied = abs(lead(minimiser(eta, phi, mu), eta)) <= RESOLUTION
        assert tied == authors_tie(eta, mu), (first, mu)
        seen.add(tied)
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["hinge", "linear", "softplus", "exponential"])
def test_those_that_push_misclassified_samples_tie_classes_without_a_majority(name):
    """Without a class above one half; with one, the same regularizers keep it alone on top."""
    phi = resolve_regularizer(name, TAU)
    minority = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64) + torch.tensor([0.08, 0, -0.08])
    assert abs(lead(minimiser(minority, phi, 20.0), minority)) <= RESOLUTION
    majority = torch.tensor([0.25, 0.6, 0.15], dtype=torch.float64)
    assert lead(minimiser(majority, phi, 20.0), majority) > 10 * RESOLUTION


@pytest.mark.parametrize("lowered", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_additive_margin_keeps_the_bayes_class_alone_on_top(lowered, mu, classes):
    """And its minimiser is where eta_c is proportional to 1 / |slope| at p_c."""
    for eta in probabilities(classes, 3, seed=20 + classes):
        z = smallest(eta, partial(additive_risk, eta=eta, lowered=lowered, mu=mu))
        if float(z.abs().max()) > REACH - 1:
            continue  # a class of nearly no probability is beyond the search
        assert lead(z, eta) > 10 * RESOLUTION
        p = z.softmax(0)
        beta = 1 - torch.exp(torch.tensor(-lowered, dtype=p.dtype))
        slope = 1 / p + mu * beta / (1 - beta * p)
        found = (1 / slope) / (1 / slope).sum()
        torch.testing.assert_close(found, eta, atol=3e-3, rtol=0)
        # Sharper than the probabilities themselves.
        assert float(p.max()) > float(eta.max()) - 1e-3


def test_a_margin_in_units_of_a_common_norm_is_another_ramp():
    """phi(a / n) with n the same for all classes is the ramp of width n tau, times mu / n."""
    t = torch.linspace(-5, 5, 41, dtype=torch.float64)
    for n in (0.25, 3.0):
        ours = regularize(t / n, resolve_regularizer("ramp", TAU))
        torch.testing.assert_close(ours, regularize(t, resolve_regularizer("ramp", n * TAU)) / n)


def test_the_search_finds_what_is_known():
    """Without a regularizer the minimiser is the log of the probabilities."""
    for classes in (2, 3, 4):
        eta = probabilities(classes, 1, seed=99)[0]
        found = minimiser(eta, resolve_regularizer("ramp", TAU), 0.0)
        torch.testing.assert_close(found.softmax(0), eta, atol=2e-3, rtol=0)
