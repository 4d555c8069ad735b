"""Finite differences whose passes wait for the backward, against passes made in run."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrizations

from gradient_modes.networks import CLASSES, gradient, images, smooth_cnn, smooth_mlp
from margin_ext import AverageMarginLoss, FiniteDifference

SIDES = ("backward", "forward", "central")


def criterion(side: str = "backward", *, deferred: bool = True, **settings) -> AverageMarginLoss:
    difference = FiniteDifference(side, 0.3, "absolute", deferred=deferred)
    settings = {"regularizer": "softplus", "gradient": difference, **settings}
    return AverageMarginLoss(**settings)


class Counted(nn.Module):
    """Counts its forward passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.passes = inner, 0

    def forward(self, x):
        self.passes += 1
        return self.inner(x)


def vectors(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 12).double(), torch.randint(0, CLASSES, (batch,))


class Shared(nn.Module):
    """One layer twice, one never, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(12, 8), nn.Linear(8, 8)
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(8, CLASSES)
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.head(self.twice(self.twice(self.first(x)).tanh()).tanh())


class TwoTypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.single, self.head = nn.Linear(12, 8).float(), nn.Linear(8, CLASSES).double()

    def forward(self, x):
        return self.head(self.single(x.float()).tanh().double())


def normed(norm) -> nn.Module:
    layers = [norm(nn.Linear(12, 8)), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers).double()


NETWORKS = {
    "cnn": (smooth_cnn, images),
    "batchnorm": (lambda: smooth_cnn(batchnorm=True), images),
    "batchnorm, evaluated": (lambda: smooth_cnn(batchnorm=True).eval(), images),
    "dropout": (lambda: smooth_cnn(dropout=0.5), images),
    "shared, unused and frozen": (lambda: Shared().double(), vectors),
    "two types": (TwoTypes, vectors),
    "spectral norm": (lambda: normed(parametrizations.spectral_norm), vectors),
    "spectral norm, older interface": (lambda: normed(nn.utils.spectral_norm), vectors),
    "weight norm": (lambda: normed(parametrizations.weight_norm), vectors),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_passes_made_in_run(name, side):
    make, data = NETWORKS[name]
    model, (x, y) = make(), data()
    out, found, after = gradient(model, criterion(side), x, y)
    wanted_out, wanted, wanted_after = gradient(model, criterion(side, deferred=False), x, y)
    assert torch.equal(out.loss, wanted_out.loss)
    # Only a parameter that is used once in each of two passes sums two numbers, in any order alike.
    if side == "central" or name.startswith(("shared", "spectral", "weight")):
        rounding = 1e-6 if name == "two types" else 1e-12
        assert (found - wanted).norm() < rounding * wanted.norm()
    else:
        assert torch.equal(found, wanted)
    for one, other in zip(after.buffers(), wanted_after.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"reduction": "sum"},
        {"fraction": 0.5},
        {"fraction": 0.5, "reduction": "sum"},
        {"batchnorm": "running"},
        {"ignore_index": 1},
        {"p": "inf", "input_std": [0.2, 0.5, 2.0]},
        {"classes": "all", "weight": torch.tensor([0.5, 1, 2, 0.2, 3.0])},
    ],
    ids=str,
)
def test_every_setting_of_the_loss(settings):
    model, (x, y) = smooth_cnn(batchnorm=True, dropout=0.3), images(8)
    _, found, _ = gradient(model, criterion(**settings), x, y)
    _, wanted, _ = gradient(model, criterion(deferred=False, **settings), x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_upstream_factors(side, fraction):
    """A loss scaler's, and one for each sample."""
    model, (x, y) = smooth_mlp(), vectors()
    parameters = list(model.parameters())
    for reduction, upstream in (("mean", torch.tensor(2.0**12)), ("none", torch.randn(6))):
        found = []
        for deferred in (True, False):
            torch.manual_seed(0)
            one = criterion(side, deferred=deferred, reduction=reduction, fraction=fraction)
            loss = one.run(model, x, y).loss
            grads = torch.autograd.grad(loss, parameters, upstream.double())
            found.append(torch.cat([g.flatten() for g in grads]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("side", "passes"), [("backward", 2), ("forward", 2), ("central", 3)])
def test_passes_are_made_when_and_as_often_as_they_are_needed(side, passes):
    model, (x, y) = Counted(smooth_mlp()), vectors()
    criterion(side).run(model, x, y)  # the model is tried out, once
    model.passes = 0
    out = criterion(side).run(model, x, y)
    assert model.passes == 1
    out.loss.backward(retain_graph=True)
    assert model.passes == passes
    once = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    out.loss.backward()
    assert model.passes == 2 * passes - 1
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), once, strict=True))


def test_a_step_holds_one_graph():
    """When a later pass begins, the activations that the passes before had saved are gone."""
    alive, saved = [], []

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.append(weakref.ref(self))

    class Recording(nn.Module):
        def forward(self, x):
            alive.append([ref() is not None for ref in saved])
            with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                return x.tanh()

    model = nn.Sequential(nn.Linear(12, 8), Recording(), nn.Linear(8, CLASSES)).double()
    x, y = vectors()
    criterion("central").run(model, x, y)  # the model is tried out, once
    alive.clear()
    saved.clear()
    out = criterion("central").run(model, x, y)
    out.loss.backward()
    gc.collect()
    assert alive == [[], [False], [False, False]]


def test_a_loss_that_is_never_differentiated_is_freed():
    model, (x, y) = smooth_mlp(), vectors()
    out = criterion().run(model, x, y)
    ref = weakref.ref(out.logits)
    del out
    assert ref() is None


def test_hooks_of_accumulation_fire_once():
    model, (x, y) = smooth_mlp(), vectors()
    fired = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    criterion("central").run(model, x, y).loss.backward()
    assert len(fired) == len(list(model.parameters()))


def test_an_optimizer_inside_the_backward_steps_after_all_passes():
    model, (x, y) = smooth_mlp(), vectors()
    _, wanted, _ = gradient(model, criterion(deferred=False), x, y)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])

    @torch.no_grad()
    def step(parameter):
        parameter -= 0.1 * parameter.grad

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    criterion().run(model, x, y).loss.backward()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close((before - after) / 0.1, wanted)


def test_changes_between_run_and_backward_are_refused():
    model, (x, y) = smooth_cnn(batchnorm=True).eval(), images()
    for name, changed in [*model.named_parameters(), *model.named_buffers(), ("inputs", x)]:
        out = criterion().run(model, x, y)
        with torch.no_grad():
            changed.mul_(1)
        # Where the step's own pass had saved it, autograd is the first to tell.
        told = rf"{name} was changed in place between run|modified by an inplace operation"
        with pytest.raises(RuntimeError, match=told):
            out.loss.backward()
    out = criterion().run(model, x, y)
    with torch.no_grad():
        model[-1].bias += 1
    with pytest.raises(
        RuntimeError, match=r"8.bias was changed .*version 3, expected 2.*deferred="
    ):
        out.loss.backward()


def test_losses_of_several_calls_before_one_backward():
    model, (x, y) = smooth_cnn(batchnorm=True), images()
    _, wanted, _ = gradient(model, criterion(deferred=False), x, y)
    _, other, _ = gradient(model, criterion(deferred=False), x.flip(0), y)
    loss = criterion().run(model, x, y).loss + criterion().run(model, x.flip(0), y).loss
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, wanted + other, rtol=1e-9, atol=1e-12)
    # Where the second call moves buffers that the first one read, it is told.
    running = criterion(batchnorm="running")
    loss = running.run(model, x, y).loss + running.run(model, x.flip(0), y).loss
    with pytest.raises(RuntimeError, match=r"1.\w+ was changed in place"):
        loss.backward()


def test_modes_of_layers_are_those_of_run():
    model, (x, y) = smooth_cnn(batchnorm=True, dropout=0.5), images()
    _, wanted, _ = gradient(model, criterion(deferred=False), x, y)
    torch.manual_seed(0)
    out = criterion().run(model, x, y)
    model.eval()
    out.loss.backward()
    assert not any(layer.training for layer in model.modules())
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(found, wanted)


def test_autocast_is_that_of_run():
    model, (x, y) = smooth_cnn().float(), images()
    x, types = x.float(), []
    criterion().run(model, x, y)  # the model is tried out, once
    model[-1].register_forward_hook(lambda *given: types.append(given[-1].dtype))
    found = []
    for deferred in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = criterion(deferred=deferred).run(model, x, y)
        out.loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert types == [torch.bfloat16] * 4
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-3)


def test_second_derivatives_of_the_loss_need_passes_in_run():
    model, (x, y) = smooth_mlp(), vectors()
    parameters = list(model.parameters())
    with pytest.raises(RuntimeError, match=r"create_graph=True.*deferred=False"):
        torch.autograd.grad(criterion().run(model, x, y).loss, parameters, create_graph=True)
    loss = criterion(deferred=False).run(model, x, y).loss
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in grads), parameters)


def test_tensors_that_are_not_the_models_keep_their_gradients():
    head = nn.Linear(8, CLASSES).double()
    body = Counted(nn.Sequential(nn.Linear(12, 8), nn.Tanh()).double())
    x, y = vectors()
    whole = nn.Sequential(body.inner, head)
    _, wanted, _ = gradient(whole, criterion(), x, y)
    criterion().run(body, x, y, logits_fn=head).loss.backward()
    assert body.passes == 2
    found = torch.cat([p.grad.flatten() for p in whole.parameters()])
    assert torch.equal(found, wanted)


def test_what_cannot_wait_is_made_in_run():
    x, y = vectors()

    def passes(model=None, loss=None, **settings) -> int:
        counted = Counted(smooth_mlp()) if model is None else model
        (loss or criterion()).run(counted, x, y, **settings)
        return counted.passes

    assert passes() == 1
    assert passes(call=lambda model, given: model(given)) == 2
    assert passes(loss=criterion(deferred=False)) == 2
    hooked = Counted(smooth_mlp())
    hooked.inner[1].weight.register_hook(lambda g: g / 2)
    assert passes(hooked) == 2
    assert passes(Counted(smooth_mlp()).requires_grad_(False)) == 2
    function = Counted(smooth_mlp())
    criterion().run(function.forward, x, y)
    assert function.passes == 2


@pytest.mark.parametrize("name", ["spectral norm", "batchnorm", "dropout"])
def test_check_agrees(name):
    make, data = NETWORKS[name]
    model, (x, y) = make(), data()
    before = copy.deepcopy(model.state_dict())
    one = criterion("central")
    one.gradient = replace(one.gradient, step=1e-3)
    assert one.check(model, x, y).agrees
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
