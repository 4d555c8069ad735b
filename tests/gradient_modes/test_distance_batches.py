"""Batches of all kinds with margin="distance": labels, weights, types, units, and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gradient_modes.small_problems import data, require_the_same_compiled, smooth_net
from margin_ext import AverageMarginLoss, Distance

BOX = (-2.0, 2.0)


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
@pytest.mark.parametrize("what", ["ignored", "flat", "masked", "empty", "tied", "one"])
def test_samples_without_a_boundary_leave_nothing_bad(what, form):
    net = smooth_net()
    x, y = data(net)
    options = {"reduction": "sum"} if what == "empty" else {}
    if what == "ignored":
        y[::2] = -100
    elif what == "flat":
        with torch.no_grad():
            net[0].weight.zero_()
    elif what == "tied":
        with torch.no_grad():
            net[2].weight[1:] = net[2].weight[0]
            net[2].bias.zero_()
    elif what == "one":
        x, y = x[:1], y[:1]
    elif what == "empty":
        x, y = x[:0], y[:0]
    elif what == "masked":
        y.zero_()

    def masked(z):
        return z.index_fill(1, torch.tensor([1, 2, 3]), -torch.inf) if what == "masked" else z

    criterion = AverageMarginLoss(**options, tau=2.0, margin=Distance(form=form))
    out = criterion.run(net, x, y, logits_fn=masked)
    out.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    assert bool((out.margin.abs() <= 2.0)[~out.margin.isnan()].all())
    if what == "ignored":
        assert torch.equal(out.margin.isnan(), y == -100)
        kept = y != -100
        torch.manual_seed(0)
        whole = AverageMarginLoss(tau=2.0, margin=Distance(form=form, noise=0.0))
        torch.testing.assert_close(whole.run(net, x, y).loss, whole.run(net, x[kept], y[kept]).loss)
    elif what in ("flat", "masked"):
        assert bool((out.margin.abs() == 2.0).all())


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_and_reductions_are_those_of_the_cross_entropy(form, reduction):
    net = smooth_net()
    x, y = data(net)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    mode = Distance(form=form, noise=0.0)
    options = {"tau": 1.0, "mu": 0.8, "margin": mode}
    each = AverageMarginLoss(**options, reduction="none").run(net, x, y).loss
    found = AverageMarginLoss(**options, reduction=reduction, weight=weight).run(net, x, y).loss
    weighted = each * weight[y]
    wanted = {"none": weighted, "sum": weighted.sum(), "mean": weighted.sum() / weight[y].sum()}
    torch.testing.assert_close(found, wanted[reduction])


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_dense_and_soft_labels(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv1d(8, 4, 1)).double()
    x = torch.randn(5, 3, 7, dtype=torch.float64)
    criterion = AverageMarginLoss(margin=Distance(form=form), tau=1.0)
    dense = criterion.run(net, x, torch.randint(4, (5, 7)))
    soft = criterion.run(net, x, torch.randn(5, 4, 7, dtype=torch.float64).softmax(1))
    for out in (dense, soft):
        assert out.margin.shape == (5,)
        out.loss.backward()


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_and_odd_shapes(form, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(5 * 5 * 3, 3))
    net = net.to(dtype)
    x = torch.randn(5, 3, 7, 5).to(memory_format=torch.channels_last).to(dtype)
    y = torch.arange(5) % 3
    criterion = AverageMarginLoss(margin=Distance(form=form), tau=1.0)
    out = criterion.run(net, x, y)
    out.loss.backward()
    assert out.loss.dtype == out.margin.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    wide = copy.deepcopy(net).double()
    exact = AverageMarginLoss(margin=Distance(form=form, noise=0.0), tau=1.0)
    found, wanted = exact.run(net, x, y), exact.run(wide, x.double(), y)
    torch.testing.assert_close(found.margin, wanted.margin.float(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_autocast(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 4))
    x, y = torch.randn(16, 6), torch.arange(16) % 4
    criterion = AverageMarginLoss(margin=Distance(form=form, noise=0.0), tau=1.0)
    plain = criterion.run(net, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        out = criterion.run(net, x, y)
    out.loss.backward()
    torch.testing.assert_close(out.loss, plain.loss, rtol=0.05, atol=0.02)


def test_margins_are_in_pixel_units():
    net = smooth_net()
    x, y = data(net)
    std = [0.5, 0.25, 2.0, 1.0, 4.0, 1.0]

    class Normalised(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return net(z * torch.tensor(std, dtype=z.dtype))

    for form in ("cross_entropy", "envelope"):
        options = {"margin": Distance(form=form), "tau": 1.0}
        torch.manual_seed(0)
        in_pixels = AverageMarginLoss(**options).run(net, x, y)
        torch.manual_seed(0)
        scaled = x / torch.tensor(std, dtype=x.dtype)
        normalised = AverageMarginLoss(**options, input_std=std).run(Normalised(), scaled, y)
        torch.testing.assert_close(normalised.margin, in_pixels.margin)
        torch.testing.assert_close(normalised.loss, in_pixels.loss)


@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_it_runs_under_torch_compile(form):
    require_the_same_compiled(AverageMarginLoss(margin=Distance(form=form, noise=0.0), tau=1.0))


def test_what_it_cannot_do_is_refused():
    net = smooth_net()
    x, y = data(net)
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"criterion\.run\(model, inputs, target\)"):
        AverageMarginLoss(margin="distance")(net(x), y, x)
    with pytest.raises(ValueError, match=r'margin="Distance\(.*\)" has none'):
        AverageMarginLoss(margin="distance").check(net, x, y)
    with pytest.raises(ValueError, match="regularizer='softplus' has no effect with Distance"):
        AverageMarginLoss(margin="distance", regularizer="softplus")
    with pytest.raises(ValueError, match="must be at most 1, got 2"):
        AverageMarginLoss(margin="distance", mu=2.0)
    with pytest.raises(ValueError, match=r"\(times every\) .* must be at most 1, got 1.6"):
        AverageMarginLoss(margin="distance", mu=0.8, every=2)
    inside = AverageMarginLoss(margin=Distance(data_range=(0.0, 1.0)))
    with pytest.raises(ValueError, match=r"outside the stated data range .* are they normalised"):
        inside.run(net, x.detach(), y)
    with pytest.raises(ValueError, match=r'margin="distance" needs tau, which must be above 0'):
        AverageMarginLoss(margin=Distance(form="envelope"), regularizer="linear", tau=0.0)
    AverageMarginLoss(margin=Distance(form="envelope"), mu=2.0, regularizer="softplus")


@pytest.mark.parametrize("warmup", [0, 2])
def test_one_step_of_several_has_their_weight(warmup):
    """With every=2 and mu 1/2 the moved points have all of the weight in every second step."""
    net = smooth_net()
    x, y = data(net)
    mode = Distance(noise=0.0)
    every = AverageMarginLoss(margin=mode, mu=0.5, every=2, warmup=warmup)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for step in range(4):
        rise = min((step + 1) / (warmup + 1), 1.0)
        mu = 0.0 if step % 2 else rise
        loss = every.run(net, x, y).loss
        loss.backward()
        optimizer.step()
        expected = AverageMarginLoss(margin=mode, mu=mu).run(net, x, y).loss
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"radius": 0.0}, "radius must be above 0"),
        ({"radius": math.inf}, "radius must be above 0 and finite"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"form": "ramp"}, "form must be one of cross_entropy, envelope"),
        ({"misclassified": "left"}, "misclassified must be one of toward, attack"),
    ],
)
def test_settings_that_make_no_search_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distance(**settings)
