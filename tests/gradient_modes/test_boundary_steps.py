"""Finite differences that step as far as each sample's own margin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, FiniteDifference, logit_gap

AT_THE_BOUNDARY = FiniteDifference(unit="margin", step=1)
MU, TAU = 0.7, 2.0


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data(batch: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (batch,), generator=generator)


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("p", [2, "inf", 1])
@pytest.mark.parametrize("deferred", [True, False])
def test_gradient_is_that_of_the_gap_at_the_boundary(p, deferred):
    """By the envelope theorem: d margin = d gap(x - m v) / norm."""
    model, (x, y) = smooth_net(), data(40)
    y[::2] = model(x[::2]).argmax(1)  # samples on both sides of the boundary
    tau = {2: 1.0, "inf": 0.4, 1: 1.5}[p]
    step = FiniteDifference(unit="margin", step=1, deferred=deferred)
    criterion = AverageMarginLoss(p=p, mu=MU, tau=tau, gradient=step)
    out = criterion.run(model, x, y)
    found = gradients(model, out.loss)

    twin = x.clone().requires_grad_()
    base = logit_gap(model(twin), y)
    (g,) = torch.autograd.grad(base.gap.sum(), twin, retain_graph=True)
    margin = out.margin
    v = {
        2: g / out.norm.unsqueeze(1),
        "inf": g.sign(),
        1: torch.where(g.abs() == g.abs().amax(1, keepdim=True), g.sign(), 0.0),
    }[p]
    active = (margin > 0) & (margin < tau)
    assert 8 < int(active.sum()) < 40
    # Samples nearer than the shortest step make that one.
    own = margin > tau / 20
    length = torch.where(own, margin, tau / 20)
    moved = x - length.unsqueeze(1) * v
    at_boundary = logit_gap(model(moved), y, nearest=base.runner_up).gap
    share = margin / length
    difference = base.gap * (share - 1) - share * at_boundary
    term = torch.where(active, difference / out.norm.detach(), 0.0).mean()
    expected = gradients(model, nn.functional.cross_entropy(model(x), y) + MU * term)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_it_is_exact_for_a_linear_classifier():
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(6, 4).double(), data()
    exact = AverageMarginLoss(mu=MU, tau=TAU).run(model, x, y)
    ours = AverageMarginLoss(mu=MU, tau=TAU, gradient=AT_THE_BOUNDARY).run(model, x, y)
    assert torch.equal(exact.loss, ours.loss)
    for a, b in zip(gradients(model, exact.loss), gradients(model, ours.loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class Recorded(nn.Module):
    """Keeps the inputs of its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth_net()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        return self.net(x)


def test_steps_are_held_between_a_twentieth_of_tau_and_tau():
    model, (x, y) = Recorded(), data()
    AverageMarginLoss(gradient=AT_THE_BOUNDARY).run(model, x, y)  # the model is tried out, once
    for tau in (0.5, 1000.0):
        model.seen.clear()
        out = AverageMarginLoss(
            mu=MU,
            tau=tau,
            regularizer="linear",
            gradient=AT_THE_BOUNDARY,
        ).run(model, x, y)
        out.loss.backward()
        base, moved = model.seen
        length = (moved - base).norm(dim=1)
        torch.testing.assert_close(length, out.margin.abs().clamp(tau / 20, tau))


def test_ignored_samples_and_zero_gradients_leave_nothing_bad():
    model, (x, y) = smooth_net(), data()
    with torch.no_grad():
        model[0].weight.zero_()
    y[3] = -100
    out = AverageMarginLoss(mu=MU, tau=TAU, gradient=AT_THE_BOUNDARY).run(model, x, y)
    assert all(bool(g.isfinite().all()) for g in gradients(model, out.loss))


def test_under_batchnorm_samples_keep_their_own_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4))
    x, y = data()
    criterion = AverageMarginLoss(
        mu=MU,
        tau=TAU,
        gradient=AT_THE_BOUNDARY,
        reduction="none",
    )
    out = criterion.run(model.double(), x, y)
    assert out.loss.shape == (16,)
    out.loss.mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
