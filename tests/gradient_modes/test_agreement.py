"""Every mode against double backward in float64, on smooth networks."""

from __future__ import annotations

import pytest
import torch

from gradient_modes.networks import CLASSES, gradient, images, smooth_cnn, smooth_mlp
from margin_ext import AverageMarginLoss, FiniteDifference, Regularizer
from margin_ext.gradient_modes import gradient_mode_names

# Differences of float64 gaps: the error of a step h is O(h^2) central, O(h) one-sided.
STEPS = {"central": (2e-4, 1e-5), "backward": (1e-5, 1e-3), "forward": (1e-5, 1e-3)}


def differences(side: str) -> dict:
    return {"gradient": FiniteDifference(side, STEPS[side][0], "absolute")}


def disagreement(model, settings, criterion_settings, *args) -> float:
    """Error of the part that comes through the norm, relative to that part."""
    _, exact, _ = gradient(model, AverageMarginLoss(**criterion_settings), *args)
    detached = AverageMarginLoss(gradient="detached", **criterion_settings)
    _, without, _ = gradient(model, detached, *args)
    _, found, _ = gradient(model, AverageMarginLoss(**settings, **criterion_settings), *args)
    return float((found - exact).norm() / (exact - without).norm())


@pytest.mark.parametrize("side", list(STEPS))
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("p", [1, 2, "inf", 3])
def test_finite_differences_of_smooth_networks(side, batchnorm, p):
    model = smooth_cnn(batchnorm=batchnorm, dropout=0.3)
    x, y = images()
    settings = {"p": p, "regularizer": "softplus"}
    assert disagreement(model, differences(side), settings, x, y) < STEPS[side][1]


@pytest.mark.parametrize(
    "settings",
    [
        {"input_std": [0.2, 0.5, 2.0]},
        {"weight": torch.tensor([0.5, 1, 2, 0.2, 3.0])},
        {"label_smoothing": 0.1},
        {"reduction": "sum"},
        {"classes": "all"},
        {"classes": 2},
        {"ignore_index": 1},
        {"regularizer": Regularizer.ramp(-50, 50)},
        {"regularizer": "hinge"},
        {"regularizer": "linear"},
        {"regularizer": "exponential"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "batchnorm"])
def test_every_setting_of_the_loss(settings, batchnorm):
    model = smooth_cnn(batchnorm=batchnorm)
    x, y = images(8)
    y[:] = torch.arange(8) % CLASSES
    settings = {"regularizer": "softplus", **settings}
    assert disagreement(model, differences("central"), settings, x, y) < 1e-4


def test_per_sample_losses_take_any_upstream():
    model = smooth_mlp()
    x, y = torch.randn(6, 12, dtype=torch.float64), torch.randint(0, CLASSES, (6,))
    upstream = torch.randn(6, dtype=torch.float64)
    found = []
    for settings in ({}, differences("central")):
        criterion = AverageMarginLoss(regularizer="softplus", reduction="none", **settings)
        loss = criterion.run(model, x, y).loss
        assert loss.shape == (6,)
        grads = torch.autograd.grad(loss, list(model.parameters()), upstream)
        found.append(torch.cat([g.flatten() for g in grads]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", gradient_mode_names())
def test_all_modes_have_the_same_value(mode):
    x, y = images()
    model = smooth_cnn(batchnorm=True, dropout=0.5)
    reference, _, _ = gradient(model, AverageMarginLoss(), x, y)
    out, _, _ = gradient(model, AverageMarginLoss(gradient=mode), x, y)
    for name in ("loss", "logits", "margin", "gap", "norm"):
        assert torch.equal(getattr(out, name), getattr(reference, name)), name


def test_run_is_forward_on_the_same_logits():
    x, y = images()
    model = smooth_cnn()
    criterion = AverageMarginLoss()
    out, found, _ = gradient(model, criterion, x, y)
    leaf = x.clone().requires_grad_()
    loss = criterion(model(leaf), y, leaf)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert torch.equal(loss, out.loss)
    torch.testing.assert_close(torch.cat([g.flatten() for g in grads]), found, rtol=1e-12, atol=0)


def test_detached_lacks_the_norms_part_only():
    x, y = images()
    model = smooth_mlp()
    x = x.flatten(1)[:, :12]
    criterion = AverageMarginLoss(gradient="detached", regularizer="softplus")
    _, found, _ = gradient(model, criterion, x, y)
    out = AverageMarginLoss(regularizer="softplus").run(model, x, y)
    norm = out.norm.detach()
    gap = out.logits.gather(1, y[:, None]).squeeze(1)
    others = out.logits.scatter(1, y[:, None], -torch.inf)
    margin = (gap - others.amax(1)) / norm
    loss = torch.nn.functional.cross_entropy(out.logits, y)
    loss = loss + (3 * torch.nn.functional.softplus(-margin / 3)).mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in grads]))


def test_a_step_toward_the_boundary_goes_there():
    """On a linear model the first-order margin is exact: a step of it lands on the boundary."""
    model = torch.nn.Linear(4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (5,))
    visited = []
    difference = FiniteDifference("backward", 0.1, "absolute")
    AverageMarginLoss(gradient=difference).run(model, x, y)  # the model is tried out, once
    model.register_forward_pre_hook(lambda _, given: visited.append(given[0].detach()))
    out = AverageMarginLoss(gradient=difference).run(model, x, y)
    out.loss.backward()
    assert len(visited) == 2
    moved = AverageMarginLoss().run(model, visited[1], y)
    assert torch.all(moved.gap.abs() < out.gap.abs())
    torch.testing.assert_close((visited[1] - x).norm(dim=1), torch.full((5,), 0.1).double())


def test_units_of_the_step():
    model = smooth_mlp()
    x = 3 * torch.randn(64, 12, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (64,))
    tried = AverageMarginLoss(gradient=FiniteDifference(unit="tau"))
    tried.run(model, x, y)  # the model is tried out, once

    def length(p, std=None, **settings) -> float:
        visited = []
        handle = model.register_forward_pre_hook(lambda _, given: visited.append(given[0].detach()))
        criterion = AverageMarginLoss(
            p=p,
            tau=0.4,
            gradient=FiniteDifference(**settings),
            input_std=std,
        )
        criterion.run(model, x, y).loss.backward()
        handle.remove()
        shift = visited[1] - visited[0]
        return float(torch.linalg.vector_norm(shift, float(p), dim=1).mean())

    assert length(2, unit="tau", step=0.5) == pytest.approx(0.2)
    assert length("inf", unit="absolute", step=0.3) == pytest.approx(0.3)
    spread = float(x.std(correction=0))
    assert length("inf", unit="inputs", step=0.1) == pytest.approx(0.1 * spread)
    assert length(2, unit="inputs", step=0.1) == pytest.approx(0.1 * spread * 12**0.5)
    # In pixel units x * std; the same share of the spread is then the same step of the tensor.
    assert length(2, std=0.25, unit="inputs", step=0.1) == pytest.approx(0.1 * spread * 12**0.5)
    assert length(2, std=0.25, unit="absolute", step=0.3) == pytest.approx(1.2)


def test_constant_inputs_have_a_step():
    x, y = torch.ones(3, 12, dtype=torch.float64), torch.tensor([0, 1, 2])
    criterion = AverageMarginLoss(gradient=FiniteDifference(unit="inputs", step=0.1))
    _, found, _ = gradient(smooth_mlp(), criterion, x, y)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "left"}, "scheme must be one of backward, forward, central"),
        ({"scheme": "toward"}, 'scheme "toward" is now called "backward"'),
        ({"unit": "meters"}, "unit must be one of"),
        ({"step": 0.0}, "step must be above 0"),
        ({"step": float("nan")}, "step must be above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FiniteDifference(**settings)


def test_forward_says_that_finite_differences_need_run():
    x, y = images()
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"call criterion.run\(model, inputs, target\)"):
        AverageMarginLoss(gradient="finite_difference")(smooth_cnn()(x), y, x)


def test_batch_dependent_samples_and_per_sample_losses_are_refused():
    x, y = images()
    criterion = AverageMarginLoss(gradient=FiniteDifference(unit="tau"), reduction="none")
    with pytest.raises(ValueError, match="BatchNorm, or another layer, makes samples depend"):
        criterion.run(smooth_cnn(batchnorm=True), x, y)


def test_an_empty_batch_has_no_gradient():
    x, y = images(0)
    for mode in gradient_mode_names():
        _, found, _ = gradient(
            smooth_cnn(), AverageMarginLoss(gradient=mode, reduction="sum"), x, y
        )
        assert torch.equal(found, torch.zeros_like(found))


def test_ignored_samples_alone():
    x, y = images(3)
    y[:] = -100
    for batchnorm in (False, True):
        criterion = AverageMarginLoss(gradient="finite_difference", reduction="sum")
        _, found, _ = gradient(smooth_cnn(batchnorm=batchnorm), criterion, x, y)
        assert torch.equal(found, torch.zeros_like(found))
