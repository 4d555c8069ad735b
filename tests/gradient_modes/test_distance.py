"""margin="distance": each sample at its own distance to the boundary."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from margin_ext import AdversarialTraining, AverageMarginLoss, Distance, logit_gap
from margin_ext.threat import ThreatModel

BOX = (-2.0, 2.0)
NORMS = [1, 2, "inf", 3]


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = 0.5 * torch.randn(20, 6, dtype=torch.float64)
    return nn.Linear(6, 2).double(), x.clamp(-1.5, 1.5), torch.randint(2, (20,))


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data(model: nn.Module, batch: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Two in three are classified correctly."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::3] = torch.randint(4, (len(y[::3]),), generator=generator)
    return x, y


def gradients(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("data_range", [None, (-50.0, 50.0)])
@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_it_is_the_exact_distance_on_a_linear_classifier(p, steps, noise, data_range, form):
    """One projection from anywhere is enough; the range is wide enough to have no part in it."""
    model, x, y = linear()
    exact = AverageMarginLoss(p=p, tau=9.0, mu=0.7).run(model, x, y)
    mode = Distance(form=form, steps=steps, noise=noise, data_range=data_range)
    ours = AverageMarginLoss(p=p, tau=9.0, mu=0.7, margin=mode).run(model, x, y)
    torch.testing.assert_close(ours.margin, exact.margin, rtol=1e-9, atol=1e-12)
    assert bool((exact.margin < 0).any())
    for name in ("minimum_margin", "average_margin", "median_margin", "accuracy"):
        found, wanted = getattr(ours.statistics, name), getattr(exact.statistics, name)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert float(exact.statistics.median_margin) == float(exact.margin.median())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("regularizer", ["ramp", "softplus"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_envelopes_gradient_is_exact_on_a_linear_classifier(p, regularizer, noise):
    model, x, y = linear()
    options = {"p": p, "tau": 9.0, "mu": 0.7, "regularizer": regularizer}
    exact = AverageMarginLoss(**options).run(model, x, y).loss
    mode = Distance(form="envelope", steps=1, noise=noise)
    ours = AverageMarginLoss(**options, margin=mode).run(model, x, y).loss
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(gradients(ours, model), gradients(exact, model))


def test_misclassified_samples_are_the_regularizers_business():
    """The ramp from 0 is flat there; one that begins below 0 pushes, and only up to its end."""
    from margin_ext import Regularizer

    model, x, _ = linear()
    y = model(x).argmin(1)
    far = y.clone()
    mode = Distance(form="envelope", steps=1, noise=0.0)

    def term(regularizer):
        loss = AverageMarginLoss(mu=1.0, tau=9.0, margin=mode, regularizer=regularizer)
        return loss.run(model, x, far).loss - nn.functional.cross_entropy(model(x), far)

    assert float(gradients(term("ramp"), model).abs().max()) < 1e-12
    assert float(gradients(term(Regularizer.ramp(-9.0, 0.0)), model).abs().max()) > 1e-2
    assert float(gradients(term(Regularizer.ramp(-1e-9, 0.0)), model).abs().max()) < 1e-12


def by_search(model, x, y, reach=4.0, directions=20_000, points=400) -> torch.Tensor:
    """Distance of the nearest change of class in the plane, along every direction."""
    angles = torch.linspace(0, 2 * math.pi, directions + 1, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    lengths = torch.linspace(0, reach, points + 1, dtype=torch.float64)[1:]
    found = []
    for center, label in zip(x, y, strict=True):
        best = torch.tensor(reach, dtype=torch.float64)
        for length in lengths:
            gap = logit_gap(model(center + length * rays), label.expand(directions)).gap
            if bool((gap <= 0).any()):
                best = length
                break
        found.append(best - reach / points / 2)
    return torch.stack(found)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_finds_the_distance_in_a_network_with_two_layers(noise):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = 1.5 * torch.randn(12, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    wanted = by_search(model, x, y)
    near = wanted < 2.5
    assert int(near.sum()) >= 6
    mode = Distance(form="envelope", steps=8, noise=noise)
    margin = AverageMarginLoss(tau=3.0, margin=mode).run(model, x, y).margin
    first = AverageMarginLoss().run(model, x, y).margin
    close = (margin - wanted).abs() < 0.03
    # A search may end at a boundary that is not the nearest one, and then never says too little.
    assert float(close[near].double().mean()) >= 0.8
    assert bool((margin > wanted - 0.03).all())
    # Where projections end elsewhere the margin is that of the radius.
    assert bool((close | (margin > wanted))[near].all())
    assert (margin - wanted)[near].abs().median() < 0.05 * (first - wanted)[near].abs().median()


def test_the_envelopes_gradient_is_that_of_the_distance():
    """By numbers, where the search has converged."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = 1.5 * torch.randn(12, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    criterion = AverageMarginLoss(
        tau=2.0, mu=1.0, margin=Distance(form="envelope", steps=40, noise=0.0)
    )
    converged = (criterion.run(model, x, y).margin - by_search(model, x, y)).abs() < 0.03
    x, y = x[converged], y[converged]
    out = criterion.run(model, x, y)
    assert int(((out.margin > 0.05) & (out.margin < 1.95)).sum()) >= 6
    ours = gradients(out.loss, model)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def moved(step: float) -> torch.Tensor:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, d in zip(twin.parameters(), direction, strict=True):
                parameter.add_(d, alpha=step)
        return criterion.run(twin, x, y).loss.detach()

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    along = ours @ torch.cat([d.flatten() for d in direction])
    torch.testing.assert_close(along, numeric, rtol=1e-3, atol=1e-5)


class Recorded(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


def passes(mode: Distance, net: nn.Module, x, y, **options) -> list[torch.Tensor]:
    model = Recorded(net)
    criterion = AverageMarginLoss(**{"tau": 1.5, "mu": 0.7, **options}, margin=mode)
    criterion.run(model, x, y)  # the model is tried out, once
    model.seen.clear()
    criterion.run(model, x, y).loss.backward()
    return model.seen


@pytest.mark.parametrize("p", [1, 2, "inf"])
@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_points_stay_in_radius_and_range(p, form):
    net = smooth_net()
    x, y = data(net)
    x = x.clamp(*BOX)
    threat = ThreatModel(p=float(p))
    for noise, count in ((0.0, 3), (1.0, 4)):
        mode = Distance(form=form, steps=2, radius=0.8, noise=noise, data_range=BOX)
        seen = passes(mode, net, x, y, p=p)
        assert len(seen) == 1 + mode.reruns == count
        for points in seen:
            assert float(points.min()) >= BOX[0]
            assert float(points.max()) <= BOX[1]
        for points, limit in zip(seen[1:], [1.5 * noise] * (count - 3) + [1.2] * 2, strict=True):
            assert float(threat.distance(points, x).max()) <= limit * (1 + 1e-9)


def test_the_cross_entropy_is_taken_beyond_the_own_boundary():
    model, x, y = linear()
    exact = AverageMarginLoss().run(model, x, y).margin
    radius = float(exact.abs().median()) * 1.2
    for misclassified in ("toward", "attack"):
        mode = Distance(steps=1, noise=0.0, misclassified=misclassified)
        options = {"tau": radius, "mu": 0.8}
        point = passes(mode, model, x, y, **options)[-1]
        length = (1.1 * exact.abs().clamp_max(radius) + 0.2 * radius).clamp_max(radius)
        side = torch.where(exact < 0, -1.0, 1.0)
        if misclassified == "attack":
            length = torch.where(exact < 0, radius, length)
            side = torch.ones_like(side)
        torch.testing.assert_close((point - x).norm(dim=1), length)
        gap = logit_gap(model(point), y).gap
        norm = logit_gap(model(x), y).gap / exact
        torch.testing.assert_close(gap, norm * (exact - side * length))
        out = AverageMarginLoss(**options, margin=mode).run(model, x, y)
        clean, there = (nn.functional.cross_entropy(model(at), y) for at in (x, point))
        torch.testing.assert_close(out.loss, 0.2 * clean + 0.8 * there)
        torch.testing.assert_close(out.statistics.regularizer, (there - clean).detach())
        torch.testing.assert_close(
            gradients(out.loss, model), gradients(0.2 * clean + 0.8 * there, model)
        )
        peer = AdversarialTraining(
            eps=radius, steps=1, noise=0.0, length="own", misclassified=misclassified, clean=0.2,
            threat=ThreatModel(p=2),
        )  # fmt: skip
        torch.testing.assert_close(peer.run(model, x, y).loss, out.loss)


def test_noise_is_new_in_each_step_and_repeats_with_the_seed():
    net = smooth_net()
    x, y = data(net)
    criterion = AverageMarginLoss(margin="distance", tau=1.0)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(float(criterion.run(net, x, y).loss.detach()))
    assert found[0] == found[1] != found[2]

    def two() -> bool:
        return torch.equal(criterion.run(net, x, y).loss, criterion.run(net, x, y).loss)

    assert not two()
    criterion.eval()
    assert two()


def test_layers_keep_their_state_and_masks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4))
    x, y = torch.randn(10, 6), torch.randint(4, (10,))
    for form in ("cross_entropy", "envelope"):
        model, twin = copy.deepcopy(net), copy.deepcopy(net)
        torch.manual_seed(1)
        criterion = AverageMarginLoss(tau=1.0, margin=Distance(form=form))
        criterion.run(model, x, y).loss.backward()
        torch.manual_seed(1)
        twin(x)
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, theirs)
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


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
    net = smooth_net()
    x, y = data(net)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager")
    criterion = AverageMarginLoss(margin=Distance(form=form, noise=0.0), tau=1.0)
    wanted, found = criterion.run(net, x, y), criterion.run(compiled, x, y)
    torch.testing.assert_close(found.loss, wanted.loss)
    wanted.loss.backward()
    found.loss.backward()
    for a, b in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


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


def test_a_search_starts_where_the_last_one_ended():
    net = smooth_net()
    x, y = data(net)
    indices = torch.arange(30) * 2 + 1
    mode = Distance(form="envelope", steps=1, noise=0.0, memory=True)
    criterion = AverageMarginLoss(tau=2.0, margin=mode)
    other = AverageMarginLoss(tau=2.0, margin=Distance(form="envelope", steps=1, noise=0.0))
    with pytest.raises(ValueError, match=r"needs the indices.*criterion\.margin\.samples"):
        criterion.run(net, x, y)
    for steps in (1, 2, 3):
        with criterion.margin.samples(indices):
            found = criterion.run(net, x, y)
        other.margin = Distance(form="envelope", steps=steps, noise=0.0)
        wanted = other.run(net, x, y)
        torch.testing.assert_close(found.margin, wanted.margin)
        torch.testing.assert_close(found.loss, wanted.loss)
    offsets = criterion.margin.state_dict()["offsets"]
    assert offsets.shape == (60, 6)
    assert not bool(offsets[::2].any())
    again = AverageMarginLoss(
        tau=2.0, margin=Distance(form="envelope", steps=1, noise=0.0, memory=True)
    )
    again.margin.load_state_dict({"offsets": offsets.clone()})
    with again.margin.samples(indices[:7]), criterion.margin.samples(indices[:7]):
        torch.testing.assert_close(
            again.run(net, x[:7], y[:7]).loss, criterion.run(net, x[:7], y[:7]).loss
        )
    # A validation neither needs nor changes it.
    kept = criterion.margin.state_dict()["offsets"].clone()
    with torch.no_grad():
        criterion.run(net, x, y)
    assert torch.equal(criterion.margin.state_dict()["offsets"], kept)
    with criterion.margin.samples(indices), pytest.raises(ValueError, match="one for each of 7"):
        criterion.run(net, x[:7], y[:7])


def test_a_search_that_overflowed_is_not_remembered():
    net = smooth_net()
    x, y = data(net)
    criterion = AverageMarginLoss(margin=Distance(memory=True), tau=2.0, mu=0.8)
    indices = torch.arange(30)
    bad = x.clone()
    bad[3, 0] = math.nan
    with criterion.margin.samples(indices):
        criterion.run(net, bad, y)
        assert bool(criterion.margin.state_dict()["offsets"].isfinite().all())
        assert bool(criterion.run(net, x, y).loss.isfinite())
    with (
        criterion.margin.samples(indices - 1),
        pytest.raises(ValueError, match="indices of samples must be at least 0, got -1"),
    ):
        criterion.run(net, x, y)
