"""Features, auxiliary losses and outputs belong to the first pass of the whole batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss, FiniteDifference

MODES = {
    "double_backward": {},
    "detached": {"gradient": "detached"},
    "deferred": {"gradient": "finite_difference"},
    "at once": {"gradient": FiniteDifference("central", deferred=False)},
    "auto": {"gradient": "auto"},
    "secant": {"margin": "secant"},
    "distance": {"margin": "distance", "regularizer": "ramp"},
    "additive": {"margin": "additive", "regularizer": "ramp"},
    "fraction": {"fraction": 0.5},
    "fraction at once": {"fraction": 0.5, "gradient": FiniteDifference(deferred=False)},
    "running": {"batchnorm": "running"},
    "every": {"every": 2},
}
FEATURES: dict[str, torch.Tensor] = {}
LOSSES: list[torch.Tensor] = []


class Net(nn.Module):
    """Keeps what users keep, in the ways in which they do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU())
        self.head = nn.Linear(8, CLASSES)
        self.auxiliary = None
        self.losses = []
        self.features = {}
        self.by_layer = {"body": []}

    def forward(self, x):
        h = self.body(x)
        self.auxiliary = h.square().mean()
        self.losses.append(h.abs().mean())
        self.features["h"] = h
        self.features["detached"] = h.detach()
        self.by_layer["body"].append(h)
        FEATURES["forward"] = h
        LOSSES.append(h.sum())
        return {"logits": self.head(h), "features": h, "auxiliary": (self.auxiliary, "text")}


class Observer:
    def __init__(self):
        self.kept = None
        self.all = []

    def __call__(self, module, args, output):
        self.kept = output
        self.all.append(output)

    def method(self, module, args, output):
        self.kept = output


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6).double(), torch.arange(8) % CLASSES


@pytest.mark.parametrize("name", MODES)
def test_what_layers_and_hooks_keep_is_of_the_first_pass(name):
    torch.manual_seed(0)
    FEATURES.clear()
    LOSSES.clear()
    model, (x, y) = Net().double(), data()
    local, bound, called = {}, Observer(), Observer()
    variable = None

    def assign(module, args, output):
        nonlocal variable
        variable = output

    def store(table, module, args, output):
        table["partial"] = output

    model.body.register_forward_hook(lambda m, i, o: FEATURES.update(hook=o))
    model.body.register_forward_hook(lambda m, i, o: local.__setitem__("closure", o))
    model.body.register_forward_hook(assign)
    model.body.register_forward_hook(partial(store, local))
    model.body.register_forward_hook(bound.method)
    model.body.register_forward_hook(called)
    out = AverageMarginLoss(**{"regularizer": "softplus", **MODES[name]}).run(
        model, x, y, logits_fn=lambda output: output["logits"]
    )
    first = out.output["features"]

    def holds() -> None:
        for kept in (
            model.features["h"],
            FEATURES["forward"],
            FEATURES["hook"],
            local["closure"],
            local["partial"],
            variable,
            bound.kept,
            called.kept,
        ):
            assert kept is first
        for items in (model.losses, model.by_layer["body"], LOSSES, called.all):
            assert len(items) == 1
        assert torch.equal(model.features["detached"], first.detach())
        assert out.output["auxiliary"][0] is model.auxiliary
        assert first.shape[0] == 8

    holds()
    assert out.logits is out.output["logits"]
    (out.loss + model.auxiliary + sum(model.losses)).backward()
    holds()


@pytest.mark.parametrize("name", MODES)
def test_an_auxiliary_loss_adds_its_own_gradient(name):
    model, (x, y) = Net().double().eval(), data()
    parameters = list(model.parameters())

    def gradients(*, auxiliary: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        out = AverageMarginLoss(**{"regularizer": "softplus", **MODES[name]}).run(
            model, x, y, logits_fn=lambda output: output["logits"]
        )
        (out.loss + (model.auxiliary if auxiliary else 0.0)).backward()
        return [p.grad.clone() for p in parameters]

    without, found = gradients(auxiliary=False), gradients(auxiliary=True)
    model(x)
    own = torch.autograd.grad(model.auxiliary, parameters, allow_unused=True)
    for a, b, c in zip(found, without, own, strict=True):
        torch.testing.assert_close(a, b if c is None else b + c)


def test_features_that_the_same_pass_reads_are_its_own():
    """A decoder that reads what a hook has kept of the encoder, as in some U-nets."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.middle = nn.Linear(6, 8), nn.Linear(8, 8)
            self.head = nn.Linear(16, CLASSES)
            self.kept = {}
            self.encoder.register_forward_hook(lambda m, i, o: self.kept.update(h=o))

        def forward(self, x):
            h = self.middle(self.encoder(x).tanh())
            return self.head(torch.cat([h, self.kept["h"]], 1).tanh())

    torch.manual_seed(0)
    model, (x, y) = Hooked().double(), data()
    found = []
    for gradient in ("double_backward", FiniteDifference("central", 1e-4, "absolute")):
        model.zero_grad()
        AverageMarginLoss(regularizer="softplus", gradient=gradient).run(
            model, x, y
        ).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_those_who_count_or_record_passes_see_all():
    class Counted(nn.Linear):
        passes = 0

        def forward(self, x):
            self.passes += 1
            self.seen.append(x.detach())
            return super().forward(x)

    model, (x, y) = Counted(6, CLASSES).double(), data()
    model.seen = []
    AverageMarginLoss(margin="secant").run(model, x, y)
    assert model.passes == len(model.seen) == 3


def test_a_model_that_returns_logits_alone_is_its_own_output():
    model, (x, y) = nn.Linear(6, CLASSES).double(), data()
    out = AverageMarginLoss().run(model, x, y)
    assert out.output is out.logits
