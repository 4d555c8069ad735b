"""margin="secant": slopes along the way to an attack's point."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradient_modes.small_problems import Recorded, data, require_the_same_compiled, smooth_net
from margin_ext import AverageMarginLoss, Secant, logit_gap

TAU = 1.5


def criterion(steps: int = 2, **options) -> AverageMarginLoss:
    secant = Secant(steps=steps, **{k: options.pop(k) for k in ("data_range",) if k in options})
    return AverageMarginLoss(**{"tau": TAU, "mu": 0.7, **options}, margin=secant)


@pytest.mark.parametrize("p", [1, 2, "inf", 3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_it_is_the_exact_distance_to_a_linear_classifiers_boundary(p, steps):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(2, (20,))
    ours = criterion(steps, p=p).run(model, x, y)
    exact = AverageMarginLoss(p=p, tau=TAU, mu=0.7).run(model, x, y)
    torch.testing.assert_close(ours.margin, exact.margin, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.loss, exact.loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_value_and_gradient_are_those_of_the_two_gaps(steps):
    net = smooth_net()
    x, y = data(net)
    model = Recorded(copy.deepcopy(net))
    criterion(steps).run(model, x, y)  # the model is tried out, once
    model.seen.clear()
    out = criterion(steps).run(model, x, y)
    out.loss.backward()
    assert len(model.seen) == steps + 1
    there = model.seen[-1]
    distance = (there - x).norm(dim=1)
    assert float(distance.max()) <= TAU * (1 + 1e-6)
    here_gap, there_gap = logit_gap(net(x), y).gap, logit_gap(net(there), y).gap
    slope = (here_gap - there_gap) / distance
    assert bool((slope > 0).all())
    margin = here_gap / slope
    torch.testing.assert_close(out.margin, margin.detach())
    torch.testing.assert_close(out.norm, slope.detach())
    phi = (TAU - margin).clamp(0, TAU)
    active = (phi > 0) & (phi < TAU)
    assert 5 < int(active.sum()) < 25
    expected = nn.functional.cross_entropy(net(x), y) + 0.7 * phi.mean()
    torch.testing.assert_close(out.loss, expected)
    expected.backward()
    for ours, theirs in zip(model.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_the_attack_stays_in_the_data_range():
    net = smooth_net()
    x = torch.rand(20, 6, dtype=torch.float64)
    model = Recorded(net)
    criterion(data_range=(0.0, 1.0)).run(model, x, net(x).argmax(1))
    for points in model.seen:
        assert float(points.min()) >= 0
        assert float(points.max()) <= 1
    assert not torch.equal(model.seen[-1], x)


def test_margins_are_in_pixel_units():
    net = smooth_net()
    x, y = data(net)
    std = [0.5, 0.25, 2.0, 1.0, 4.0, 1.0]

    class Normalised(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return net(z * torch.tensor(std, dtype=z.dtype))

    in_pixels = criterion().run(net, x, y)
    normalised = criterion(input_std=std).run(Normalised(), x / torch.tensor(std, dtype=x.dtype), y)
    torch.testing.assert_close(normalised.margin, in_pixels.margin)
    torch.testing.assert_close(normalised.loss, in_pixels.loss)


def test_layers_keep_their_state_and_masks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4))
    x, y = torch.randn(10, 6), torch.randint(4, (10,))
    twin = copy.deepcopy(net)
    torch.manual_seed(1)
    criterion(3).run(net, x, y).loss.backward()
    torch.manual_seed(1)
    twin(x)
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("what", ["ignored", "flat", "masked", "empty"])
def test_samples_without_a_slope_leave_nothing_bad(what):
    net = smooth_net()
    x, y = data(net)
    options = {}
    if what == "ignored":
        y[::2] = -100
    elif what == "flat":
        with torch.no_grad():
            net[0].weight.zero_()
    elif what == "empty":
        x, y = x[:0], y[:0]
        options["reduction"] = "sum"

    def masked(z):
        return z.index_fill(1, torch.tensor([1, 2, 3]), -torch.inf) if what == "masked" else z

    if what == "masked":
        y.zero_()
    out = criterion(**options).run(net, x, y, logits_fn=masked)
    out.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    if what == "ignored":
        assert torch.equal(out.margin.isnan(), y == -100)


def test_dense_and_soft_labels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv1d(8, 4, 1)).double()
    x = torch.randn(5, 3, 7, dtype=torch.float64)
    dense = criterion().run(net, x, torch.randint(4, (5, 7)))
    soft = criterion().run(net, x, torch.randn(5, 4, 7, dtype=torch.float64).softmax(1))
    for out in (dense, soft):
        assert out.margin.shape == (5,)
        out.loss.backward()


def test_it_runs_under_torch_compile():
    require_the_same_compiled(criterion())


def test_the_model_must_be_known():
    net = smooth_net()
    x, y = data(net)
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"criterion\.run\(model, inputs, target\)"):
        criterion()(net(x), y, x)
    with pytest.raises(ValueError, match=r'margin="Secant\(.*\)" has none'):
        criterion().check(net, x, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"radius": 0.0}, "radius must be above 0"),
        ({"data_range": (1.0, 0.0)}, "data_range must be"),
    ],
)
def test_settings_that_make_no_attack_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Secant(**settings)
