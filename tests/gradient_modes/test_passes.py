"""What the passes leave alone, and how a step is made cheaper."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES, gradient, images, smooth_cnn, smooth_mlp
from margin_ext import AverageMarginLoss, Distance, FiniteDifference
from margin_ext.gradient_modes import gradient_mode_names


@pytest.mark.parametrize("batchnorm", ["batch", "running"])
@pytest.mark.parametrize("mode", gradient_mode_names())
def test_running_statistics_move_once_a_step(mode, batchnorm):
    model, (x, y) = smooth_cnn(batchnorm=True), images()
    plain = copy.deepcopy(model)
    plain(x)
    criterion = AverageMarginLoss(gradient=mode, batchnorm=batchnorm)
    _, _, after = gradient(model, criterion, x, y)
    for found, wanted in zip(after.buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, wanted)
    assert all(layer.training for layer in after.modules())


@pytest.mark.parametrize("settings", [{}, {"batchnorm": "running"}, {"fraction": 0.5}])
@pytest.mark.parametrize("margin", ["first_order", "secant", Distance(noise=0.0), "additive"])
@pytest.mark.parametrize("mode", gradient_mode_names())
def test_running_statistics_of_instances_move_once_a_step(mode, margin, settings):
    """InstanceNorm takes no part in the coupling of samples, but may have running statistics."""
    model, (x, y) = smooth_cnn(), images()
    model[1] = nn.InstanceNorm2d(6, affine=True, track_running_stats=True).double()
    plain = copy.deepcopy(model)
    plain(x)
    if margin == "first_order":
        settings = {"gradient": mode, **settings}
    criterion = AverageMarginLoss(margin=margin, **settings)
    out, found, after = gradient(model, criterion, x, y)
    for one, other in zip(after.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)
    model[1].track_running_stats = False
    model[1].running_mean = model[1].running_var = None
    wanted_out, wanted, _ = gradient(model, criterion, x, y)
    assert torch.equal(out.loss, wanted_out.loss)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("mode", gradient_mode_names())
def test_the_random_state_ends_where_one_pass_leaves_it(mode):
    model, (x, y) = smooth_cnn(dropout=0.5), images()
    torch.manual_seed(3)
    model(x)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    AverageMarginLoss(gradient=mode).run(model, x, y).loss.backward()
    assert torch.equal(torch.rand(4), wanted)


def test_dropout_has_the_same_mask_in_all_passes():
    masks = []

    class Recording(nn.Dropout):
        def forward(self, given):
            made = super().forward(torch.ones_like(given))
            masks.append(made)
            return given * made

    model = nn.Sequential(nn.Linear(12, 16), Recording(0.5), nn.Linear(16, CLASSES)).double()
    x, y = torch.randn(6, 12).double(), torch.randint(0, CLASSES, (6,))
    difference = FiniteDifference("central", 0.1, "tau")
    criterion = AverageMarginLoss(gradient=difference)
    criterion.run(model, x, y)  # the model is tried out, once
    masks.clear()
    criterion.run(model, x, y).loss.backward()
    assert len(masks) == 3
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("mode", gradient_mode_names())
def test_inputs_are_not_touched(mode):
    x, y = images()
    before = x.clone()
    gradient(smooth_cnn(), AverageMarginLoss(gradient=mode), x, y)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad


def test_running_policy_is_the_margin_of_the_finished_network():
    model, (x, y) = smooth_cnn(batchnorm=True), images()
    for _ in range(3):
        model(torch.randn_like(x))
    out, found, _ = gradient(model, AverageMarginLoss(batchnorm="running"), x, y)
    finished = copy.deepcopy(model)
    finished(x)  # the step's own update comes first
    finished.eval()
    margin = AverageMarginLoss(mu=1).run(finished, x, y)
    torch.testing.assert_close(out.margin, margin.margin)

    loss = torch.nn.functional.cross_entropy(model(x), y)
    term = margin.loss - torch.nn.functional.cross_entropy(margin.logits, y)
    torch.testing.assert_close(out.loss, loss + term)
    whole = [
        a + b
        for a, b in zip(
            torch.autograd.grad(loss, list(model.parameters())),
            torch.autograd.grad(term, list(finished.parameters())),
            strict=True,
        )
    ]
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in whole]))


def test_running_policy_uncouples_the_samples():
    model, (x, y) = smooth_cnn(batchnorm=True), images()
    exact = {"batchnorm": "running", "regularizer": "softplus"}
    difference = FiniteDifference("central", 1e-3, "absolute")
    _, wanted, _ = gradient(model, AverageMarginLoss(**exact), x, y)
    _, found, _ = gradient(model, AverageMarginLoss(gradient=difference, **exact), x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["double_backward", "finite_difference", "detached"])
def test_fraction_is_unbiased(mode, reduction):
    """The mean over all the parts of a fixed split is the whole regularizer."""
    model = smooth_mlp()
    x, y = torch.randn(8, 12).double(), torch.randint(0, CLASSES, (8,))
    if mode == "finite_difference":
        mode = FiniteDifference("central", 1e-3, "absolute")
    settings = {
        "gradient": mode,
        "reduction": reduction,
        "regularizer": "softplus",
    }
    whole, wanted, _ = gradient(model, AverageMarginLoss(**settings), x, y)
    plain, without, _ = gradient(model, AverageMarginLoss(**{**settings, "mu": 0.0}), x, y)
    out, found, _ = gradient(model, AverageMarginLoss(fraction=0.5, **settings), x, y)
    taken = ~out.margin.isnan()
    assert int(taken.sum()) == 4
    torch.testing.assert_close(out.margin[taken], whole.margin[taken])
    assert torch.equal(out.gap, whole.gap)
    phi = 3 * torch.nn.functional.softplus(-whole.margin / 3)
    per_sample = plain.loss + 2 * torch.where(taken, phi, 0.0)
    if reduction == "none":
        torch.testing.assert_close(out.loss, per_sample)
    elif reduction == "sum":
        torch.testing.assert_close(out.loss, plain.loss + 2 * phi[taken].sum())
    else:
        torch.testing.assert_close(out.loss, plain.loss + phi[taken].mean())
    # Both halves together: the regularizer's gradient of the whole batch, twice.
    halves = []
    for part in (taken, ~taken):
        _, one, _ = gradient(model, AverageMarginLoss(**settings), x[part], y[part])
        _, none, _ = gradient(model, AverageMarginLoss(**{**settings, "mu": 0.0}), x[part], y[part])
        halves.append(one - none)
    scale = 1.0 if reduction == "mean" else 2.0
    torch.testing.assert_close(found - without, scale * halves[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        (halves[0] + halves[1]) * scale / 2, wanted - without, rtol=1e-6, atol=1e-9
    )


def test_every_takes_turns_with_the_weight_made_up():
    model = smooth_mlp()
    x, y = torch.randn(8, 12).double(), torch.randint(0, CLASSES, (8,))
    criterion = AverageMarginLoss(every=3, mu=0.5)
    whole, _, _ = gradient(model, AverageMarginLoss(mu=1.5), x, y)
    plain, _, _ = gradient(model, AverageMarginLoss(mu=0.0), x, y)
    losses = [criterion.run(model, x, y) for _ in range(6)]
    for index, out in enumerate(losses):
        assert torch.equal(out.loss, whole.loss if index % 3 == 0 else plain.loss)
        assert bool(out.margin.isnan().all()) == (index % 3 != 0)
        assert bool(out.statistics.average_margin.isnan()) == (index % 3 != 0)
    assert criterion.statistics["accuracy"] == whole.statistics["accuracy"]
    # Without turns where nothing is trained, and in the plain call.
    eval_loss = criterion.eval().run(model, x, y).loss
    assert torch.equal(eval_loss, gradient(model, AverageMarginLoss(mu=0.5), x, y)[0].loss)


@pytest.mark.parametrize("mode", ["double_backward", "finite_difference", "detached"])
@pytest.mark.parametrize("margin", ["first_order", "logit_gap"])
def test_normalizer_makes_accumulated_parts_one_batch(mode, margin):
    model = smooth_mlp()
    x, y = torch.randn(8, 12).double(), torch.randint(0, CLASSES, (8,))
    y[0] = -100
    how = {"gradient": mode} if margin == "first_order" else {"margin": margin}
    criterion = AverageMarginLoss(**how, regularizer="softplus")
    whole, wanted, _ = gradient(model, criterion, x, y)
    total, found = 0.0, 0.0
    for part in (slice(0, 3), slice(3, 8)):
        out, grads, _ = gradient(model, criterion, x[part], y[part], normalizer=7)
        total, found = total + out.loss, found + grads
    torch.testing.assert_close(total, whole.loss)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_tuple_outputs_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, CLASSES)

        def forward(self, x, scale):
            return self.layer(x) * scale, x

    model = Two().double()
    x, y = torch.randn(8, 12).double(), torch.randint(0, CLASSES, (8,))
    scale = torch.rand(8, 1).double() + 0.5
    for mode in gradient_mode_names():
        criterion = AverageMarginLoss(gradient=mode)
        out = criterion.run(
            model, x, y, call=lambda net, given: net(given, scale), logits_fn=lambda made: made[0]
        )
        assert torch.equal(out.logits, model(x, scale)[0])
    with pytest.raises(TypeError, match="the model returned tuple, not the logits: pass logits_fn"):
        criterion.run(model, x, y, call=lambda net, given: net(given, scale))
    with pytest.raises(ValueError, match="fraction < 1 runs the model on a part"):
        AverageMarginLoss(fraction=0.5).run(
            model, x, y, call=lambda net, given: net(given, scale)[0]
        )


def test_a_function_serves_as_model():
    x, y = images()
    model = smooth_cnn()
    criterion = AverageMarginLoss(gradient="finite_difference")
    assert torch.equal(criterion.run(model.forward, x, y).loss, criterion.run(model, x, y).loss)


@pytest.mark.parametrize("mode", gradient_mode_names())
def test_a_criterion_is_copied_and_pickled(mode):
    x, y = images()
    model = smooth_cnn()
    criterion = AverageMarginLoss(gradient=mode, every=2, input_std=0.5)
    loss = criterion.run(model, x, y).loss
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        twin.run(model, x, y)  # the turn without margins
        torch.testing.assert_close(twin.run(model, x, y).loss, loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, "fraction must be above 0 and at most 1"),
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"batchnorm": "frozen"}, "batchnorm must be one of batch, running"),
        ({"gradient": "jvp"}, "gradient must be one of double_backward, finite_difference"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AverageMarginLoss(**settings)
