"""Dense logits and soft labels in every gradient mode, against plain labels and numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from gradient_modes.networks import CLASSES, gradient, images, smooth_cnn, smooth_mlp
from margin_ext import AverageMarginLoss, FiniteDifference
from margin_ext.gradient_modes import gradient_mode_names

SHORT = FiniteDifference("central", 2e-4, "absolute")
WEIGHT = torch.tensor([0.5, 1, 2, 0.2, 3.0])


def segmenter(*, batchnorm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6) if batchnorm else nn.Identity(),
        nn.GELU(),
        nn.Conv2d(6, CLASSES, 3, padding=1, stride=2),
    ).double()


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    x, _ = images(4, 6)
    y = torch.randint(0, CLASSES, (4, 3, 3))
    y[0, 0] = y[2] = -100  # a row, and a whole sample
    return x, y


def soft_maps() -> tuple[torch.Tensor, torch.Tensor]:
    x, _ = images(4, 6)
    return x, torch.softmax(2 * torch.randn(4, CLASSES, 3, 3, dtype=torch.float64), 1)


def soft_vectors() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images(6)
    mixed = 0.7 * one_hot(y, CLASSES) + 0.3 * one_hot(y.flip(0), CLASSES)
    return 0.7 * x + 0.3 * x.flip(0), mixed.double()


CASES = {
    "dense": (segmenter, maps, {}),
    "dense, worst position": (segmenter, maps, {"aggregation": "worst"}),
    "dense and soft": (segmenter, soft_maps, {}),
    "dense and soft, worst position": (segmenter, soft_maps, {"aggregation": "worst"}),
    "dense, batchnorm": (lambda: segmenter(batchnorm=True), maps, {}),
    "mixup": (smooth_cnn, soft_vectors, {}),
    "mixup, batchnorm": (lambda: smooth_cnn(batchnorm=True), soft_vectors, {}),
}
SETTINGS = {
    "plain": {},
    "weighted": {"weight": WEIGHT},
    "sum, smoothed, p=inf": {"reduction": "sum", "label_smoothing": 0.1, "p": "inf"},
    "input_std": {"input_std": [0.2, 0.5, 2.0], "p": 3},
}


def directional(model: nn.Module, criterion: AverageMarginLoss, x, y) -> tuple[float, float]:
    """The derivative along one direction of the parameters: numeric, and the mode's."""
    parameters = list(model.parameters())
    moves = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(criterion.run(model, x, y).loss, parameters)
    found = float(sum((g * move).sum() for g, move in zip(grads, moves, strict=True)))
    values = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, move in zip(moved.parameters(), moves, strict=True):
                parameter.add_(step * move)
        values.append(float(criterion.run(moved, x, y).loss.detach()))
    return (values[0] - values[1]) / 2e-6, found


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_double_backward_is_the_derivative_of_the_loss(name, settings):
    make, data, own = CASES[name]
    model, (x, y) = make(), data()
    criterion = AverageMarginLoss(regularizer="softplus", **SETTINGS[settings], **own)
    numeric, found = directional(model, criterion, x, y)
    assert found == pytest.approx(numeric, rel=1e-5, abs=1e-7)
    without = AverageMarginLoss(
        regularizer="softplus", gradient="detached", **SETTINGS[settings], **own
    )
    assert directional(model, without, x, y)[1] != pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("deferred", [True, False])
def test_finite_differences_agree(name, settings, deferred):
    make, data, own = CASES[name]
    model, (x, y) = make(), data()
    settings = {"regularizer": "softplus", **SETTINGS[settings], **own}
    out, exact, _ = gradient(model, AverageMarginLoss(**settings), x, y)
    _, without, _ = gradient(model, AverageMarginLoss(gradient="detached", **settings), x, y)
    difference = FiniteDifference("central", 2e-4, "absolute", deferred=deferred)
    criterion = AverageMarginLoss(gradient=difference, **settings)
    same, found, _ = gradient(model, criterion, x, y)
    assert (found - exact).norm() < 2e-4 * (exact - without).norm()
    for one, other in zip(same[:5], out[:5], strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("mode", gradient_mode_names())
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("aggregation", ["mean", "worst"])
def test_one_position_is_a_plain_label(mode, reduction, aggregation):
    model, (x, y) = smooth_cnn(), images()
    y[2] = -100
    settings = {
        "gradient": mode,
        "reduction": reduction,
        "regularizer": "softplus",
        "weight": WEIGHT,
        "label_smoothing": 0.1,
        "aggregation": aggregation,
    }
    wanted_out, wanted, _ = gradient(model, AverageMarginLoss(**settings), x, y)
    dense = nn.Sequential(model, nn.Unflatten(1, (CLASSES, 1)))
    out, found, _ = gradient(dense, AverageMarginLoss(**settings), x, y[:, None])
    torch.testing.assert_close(out.loss.reshape(wanted_out.loss.shape), wanted_out.loss)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.margin, wanted_out.margin, equal_nan=True)
    torch.testing.assert_close(out.norm, wanted_out.norm, equal_nan=True)


@pytest.mark.parametrize("mode", gradient_mode_names())
@pytest.mark.parametrize("margin", ["first_order", "logit_gap"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_one_hot_label_is_a_plain_label(mode, margin, reduction):
    model, (x, y) = smooth_cnn(), images()
    settings = {"gradient": mode, "reduction": reduction, "margin": margin}
    if margin == "logit_gap":  # which has no input gradient
        del settings["gradient"]
    criterion = AverageMarginLoss(regularizer="softplus", **settings)
    wanted_out, wanted, _ = gradient(model, criterion, x, y)
    out, found, _ = gradient(model, criterion, x, one_hot(y, CLASSES).double())
    torch.testing.assert_close(out.loss, wanted_out.loss)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(out.margin, wanted_out.margin)
    assert torch.equal(out.statistics["accuracy"], wanted_out.statistics["accuracy"])


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
def test_per_position_losses_take_any_upstream(soft):
    model, (x, y) = segmenter(), (soft_maps() if soft else maps())
    upstream = torch.randn(4, 3, 3, dtype=torch.float64)
    found = []
    for mode in ("double_backward", SHORT, replace(SHORT, deferred=False)):
        criterion = AverageMarginLoss(
            gradient=mode,
            reduction="none",
            weight=WEIGHT,
            regularizer="softplus",
        )
        loss = criterion.run(model, x, y).loss
        grads = torch.autograd.grad(loss, list(model.parameters()), upstream)
        found.append(torch.cat([g.flatten() for g in grads]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-8)


def test_the_logit_gap_of_every_position():
    """The authors' loss on each position, as if it were a sample."""
    model, (x, y) = segmenter(), maps()
    criterion = AverageMarginLoss(margin="logit_gap", regularizer="softplus", weight=WEIGHT)
    out = criterion.run(model, x, y)
    logits = model(x).movedim(1, -1).reshape(-1, CLASSES)
    wanted = criterion(logits, y.reshape(-1))
    torch.testing.assert_close(out.loss, wanted)
    assert out.margin.shape == out.gap.shape == y.shape
    assert out.margin.isnan().equal(y == -100)
    assert int(out.statistics.count) == int((y != -100).sum())


@pytest.mark.parametrize("mode", gradient_mode_names())
def test_an_ignored_sample_moves_nothing(mode):
    model, (x, y) = segmenter(), maps()
    criterion = AverageMarginLoss(gradient=mode, regularizer="softplus")
    out, found, _ = gradient(model, criterion, x, y)
    assert out.margin.isnan().tolist() == [False, False, True, False]
    assert int(out.statistics.count) == 3
    rest = [0, 1, 3]
    wanted_out, wanted, _ = gradient(model, criterion, x[rest], y[rest])
    torch.testing.assert_close(out.loss, wanted_out.loss)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fraction_and_normalizer(name, mode, reduction):
    make, data, own = CASES[name]
    model, (x, y) = make().eval(), data()
    mode = SHORT if mode == "finite_difference" else mode
    settings = {"gradient": mode, "regularizer": "softplus", **own}
    torch.manual_seed(0)
    out = AverageMarginLoss(fraction=0.5, reduction=reduction, **settings).run(model, x, y)
    plain = AverageMarginLoss(mu=0.0, **settings).run(model, x, y)
    assert out.margin.shape == out.gap.shape == x.shape[:1]
    torch.testing.assert_close(out.gap, plain.gap, equal_nan=True)
    for statistic in ("count", "average_gap", "accuracy", "cross_entropy"):
        torch.testing.assert_close(out.statistics[statistic], plain.statistics[statistic])
    taken = ~out.norm.isnan()
    whole = AverageMarginLoss(**settings).run(model, x, y)
    torch.testing.assert_close(out.margin[taken], whole.margin[taken])
    criterion = AverageMarginLoss(**settings)
    _, wanted, _ = gradient(model, criterion, x, y)
    half = x.shape[0] // 2
    total = y.numel() / CLASSES if y.is_floating_point() else int((y != -100).sum())
    parts = [
        gradient(model, criterion, x[part], y[part], normalizer=total)[1]
        for part in (slice(0, half), slice(half, None))
    ]
    torch.testing.assert_close(sum(parts), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dense", "mixup"])
def test_every(name):
    make, data, _ = CASES[name]
    model, (x, y) = make(), data()
    criterion = AverageMarginLoss(every=2)
    whole, plain = (criterion.run(model, x, y) for _ in range(2))
    assert plain.margin.isnan().all()
    assert torch.equal(plain.gap.isnan(), whole.gap.isnan())
    torch.testing.assert_close(plain.gap, whole.gap, equal_nan=True)
    for statistic in ("count", "average_gap", "accuracy", "cross_entropy"):
        torch.testing.assert_close(plain.statistics[statistic], whole.statistics[statistic])
    torch.testing.assert_close(plain.loss, cross_entropy(model(x), y))


@pytest.mark.parametrize("name", CASES)
def test_running_batchnorm_and_check(name):
    make, data, own = CASES[name]
    model, (x, y) = make(), data()
    for batchnorm in ("batch", "running"):
        for mode in ("double_backward", SHORT):
            criterion = AverageMarginLoss(
                gradient=mode, batchnorm=batchnorm, regularizer="softplus", **own
            )
            assert criterion.check(model, x, y).agrees, (batchnorm, mode)


def test_hidden_layers():
    model, (x, y) = segmenter(), maps()
    x.requires_grad_()
    hidden = model[:3](x)
    logits = model[3](hidden)
    criterion = AverageMarginLoss(regularizer="softplus")
    loss = criterion(logits, y, [x, hidden], layer_weights=[1.0, 2.0])
    plain = cross_entropy(logits, y)
    wanted = 3 * plain - 2 * plain
    for weight, layer in ((1.0, x), (2.0, hidden)):
        wanted = wanted + weight * (criterion(logits, y, layer) - plain)
    torch.testing.assert_close(loss, wanted)
    loss.backward()


def test_on_a_linear_model_the_mean_gap_vanishes_at_the_margin():
    """Positions of one linear map: the distance is exact while the runners-up stay."""
    model = nn.Sequential(nn.Linear(6, CLASSES * 4), nn.Unflatten(1, (CLASSES, 4))).double()
    x, y = torch.randn(20, 6).double(), torch.randint(0, CLASSES, (20, 4))
    inputs = x.clone().requires_grad_()
    criterion = AverageMarginLoss()
    objective = criterion._objective(None, criterion.mu)
    logits = model(inputs)
    labels = objective.labels(logits, y)
    fixed = objective.nearest(logits, inputs, labels)
    grad = objective.input_gradient(logits, inputs, labels, fixed, create_graph=False)
    out = criterion.run(model, x, y)
    moved = x - out.margin[:, None] * grad / grad.norm(dim=1, keepdim=True)
    there = labels.gap(model(moved), fixed)
    torch.testing.assert_close(there, torch.zeros_like(there), atol=1e-12, rtol=0)


def test_many_positions_in_float16():
    """One position's share of a thousand and more is below what float16 holds well."""
    net = nn.Conv1d(1, CLASSES, 1)
    x, y = torch.randn(2, 1, 70_000), torch.randint(0, CLASSES, (2, 70_000))
    wanted = AverageMarginLoss(gradient="detached").run(net, x, y)

    class Half(nn.Module):
        def forward(self, given):
            return net(given).half()

    found = AverageMarginLoss(gradient="detached").run(Half(), x, y)
    torch.testing.assert_close(found.norm, wanted.norm, rtol=2e-3, atol=0)
    torch.testing.assert_close(found.margin, wanted.margin, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("mode", gradient_mode_names())
@pytest.mark.parametrize("aggregation", ["mean", "worst"])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["", "batchnorm"])
def test_large_shares_in_float16(mode, aggregation, batchnorm):
    """Of many positions few count, so that a share is 1; next to it a sample without any."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if batchnorm else nn.Identity(),
        nn.GELU(),
        nn.Conv2d(4, CLASSES, 3, padding=1),
    )
    side = 128 if batchnorm else 256  # with more, torch's own second derivative overflows
    x, y = torch.randn(3, 1, side, side), torch.full((3, side, side), 255)
    y[0, 5, 5], y[1, 100, 20:24] = 1, 0
    criterion = AverageMarginLoss(
        gradient=mode, aggregation=aggregation, ignore_index=255, regularizer="softplus"
    )
    wanted_out, wanted, _ = gradient(net, criterion, x, y)
    with torch.autocast("cpu", torch.float16):
        out, found, _ = gradient(net, criterion, x, y)
    torch.testing.assert_close(out.norm, wanted_out.norm, rtol=1e-2, atol=0, equal_nan=True)
    torch.testing.assert_close(out.loss, wanted_out.loss, rtol=1e-2, atol=0)
    assert (found - wanted).norm() < 5e-2 * wanted.norm()


def test_nothing_counts_in_float16():
    net = nn.Conv1d(1, CLASSES, 1)
    with torch.autocast("cpu", torch.float16):
        for shape in ((2, 1, 9), (0, 1, 9)):
            y = torch.full((shape[0], shape[2]), -100)
            out = AverageMarginLoss(reduction="sum").run(net, torch.randn(shape), y)
            assert out.margin.isnan().all()
            assert float(out.loss.detach()) == 0


def test_mixup_is_no_sum_of_losses():
    """One gradient pass takes the expected gap; the cross-entropy is that of the shares."""
    model, (x, y) = smooth_cnn(), images()
    y = torch.arange(6) % CLASSES
    lam = 0.7
    mixed = lam * one_hot(y, CLASSES) + (1 - lam) * one_hot(y.flip(0), CLASSES)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    out = AverageMarginLoss().run(model, x, mixed.double())
    assert len(passes) == 1
    gaps = [AverageMarginLoss(mu=0.0).run(model, x, label).gap for label in (y, y.flip(0))]
    torch.testing.assert_close(out.gap, lam * gaps[0] + (1 - lam) * gaps[1])
    ce = [cross_entropy(out.logits, label) for label in (y, y.flip(0))]
    torch.testing.assert_close(
        out.statistics.cross_entropy, (lam * ce[0] + (1 - lam) * ce[1]).detach()
    )


def test_what_has_no_meaning_is_refused():
    x, y = maps()
    model = segmenter()
    for classes in (2, "all"):
        with pytest.raises(ValueError, match=f'classes must be "runner_up", got {classes!r}'):
            AverageMarginLoss(classes=classes).run(model, x, y)
    with pytest.raises(ValueError, match="aggregation must be one of mean, worst, got 'first'"):
        AverageMarginLoss(aggregation="first")
    with pytest.raises(ValueError, match=r"target must be \[B, d1, ...\] = \[4, 3, 3\]"):
        AverageMarginLoss().run(model, x, y[:, :2])
    with pytest.raises(ValueError, match=r"target must be \[B, C\] = \[3, 5\]"):
        AverageMarginLoss().run(smooth_mlp(), torch.randn(3, 12).double(), torch.rand(3, 4))
    with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point"):
        AverageMarginLoss(ignore_index=1).run(model, *soft_maps())
