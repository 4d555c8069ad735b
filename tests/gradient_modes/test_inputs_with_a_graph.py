"""What computed the inputs gets its gradient in every mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss, Distance, FiniteDifference

MODES = {
    "double_backward": {},
    "detached": {"gradient": "detached"},
    "auto": {"gradient": "auto"},
    "finite_difference": {"gradient": "finite_difference"},
    "at once": {"gradient": FiniteDifference(deferred=False)},
    "central": {"gradient": FiniteDifference("central", 1e-4, "absolute")},
    "secant": {"margin": "secant"},
    "distance": {"margin": "distance", "regularizer": "ramp"},
    "envelope": {"margin": Distance(form="envelope")},
    "additive": {"margin": "additive", "regularizer": "ramp"},
    "logit_gap": {"margin": "logit_gap"},
    "fraction": {"fraction": 0.999},
    "every": {"every": 2},
    "none": {"reduction": "none"},
}


def head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, CLASSES)).double()


def encoder() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 5, dtype=torch.float64)
    layer = nn.Linear(5, 6).double()
    return layer(x).tanh(), layer.weight


def embedding() -> tuple[torch.Tensor, torch.Tensor]:
    table = nn.Embedding(10, 6).double()
    return table(torch.arange(8) % 5), table.weight


def patch() -> tuple[torch.Tensor, torch.Tensor]:
    shared = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    return torch.randn(8, 6, dtype=torch.float64) + shared, shared


def normaliser() -> tuple[torch.Tensor, torch.Tensor]:
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    return torch.randn(8, 6, dtype=torch.float64) * scale, scale


def leaf() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    return inputs, inputs


SOURCES = [encoder, embedding, patch, normaliser, leaf]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_goes_on_as_in_one_model(source, mode):
    """As if what computed the inputs were one function with the loss, by numbers."""
    torch.manual_seed(0)
    model, (inputs, parameter) = head(), source()
    y = torch.arange(8) % CLASSES
    criterion = AverageMarginLoss(**{"regularizer": "softplus", **MODES[mode]})
    torch.manual_seed(1)
    criterion.run(model, inputs, y).loss.sum().backward()
    assert parameter.grad is not None
    if mode in ("double_backward", "auto", "central", "fraction", "every", "none"):
        torch.manual_seed(0)
        model, (inputs, same) = head(), source()
        inputs.retain_grad()
        plain = AverageMarginLoss(regularizer="softplus", reduction=criterion.reduction)
        if mode == "every":
            plain.mu = 2.0
        plain(model(inputs), y, inputs).sum().backward()
        torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scheme", ["backward", "forward", "central"])
def test_passes_in_the_backward_hand_on_what_those_at_once_do(source, scheme):
    found = []
    for deferred in (True, False):
        torch.manual_seed(0)
        model, (inputs, parameter) = head(), source()
        mode = FiniteDifference(scheme, deferred=deferred)
        loss = AverageMarginLoss(regularizer="softplus", gradient=mode)
        loss.run(model, inputs, torch.arange(8) % CLASSES).loss.backward()
        found.append(torch.cat([parameter.grad.flatten(), model[0].weight.grad.flatten()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_a_secant_moves_with_its_inputs():
    """The points of the attack keep their distance: by numbers, along one direction."""
    torch.manual_seed(0)
    model, y = head(), torch.arange(8) % CLASSES
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    criterion = AverageMarginLoss(regularizer="softplus", margin="secant")
    offsets: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, given: offsets.append((given[0] - x).detach()))
    criterion.run(model, x, y).loss.backward()
    hook.remove()
    fixed, direction = offsets[-1], torch.randn_like(x)

    def value(inputs):
        logits = [model(inputs), model(inputs + fixed)]
        others = [
            z.masked_fill(nn.functional.one_hot(y, CLASSES).bool(), -9e9).amax(1) for z in logits
        ]
        here, there = (
            z.gather(1, y[:, None])[:, 0] - o for z, o in zip(logits, others, strict=True)
        )
        slope = (here - there) / fixed.norm(dim=1)
        assert bool((slope > 0).all())
        margin = here / slope
        phi = 3 * nn.functional.softplus(-margin / 3)
        return nn.functional.cross_entropy(logits[0], y) + phi.mean()

    with torch.no_grad():
        step = 1e-6
        numeric = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((x.grad * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_two_losses_on_one_encoder_add_up():
    torch.manual_seed(0)
    models, (inputs, parameter) = [head(), head()], encoder()
    y = torch.arange(8) % CLASSES
    loss = AverageMarginLoss(gradient="finite_difference")
    sum(loss.run(model, inputs, y).loss for model in models).backward()
    both = parameter.grad.clone()
    parameter.grad = None
    torch.manual_seed(0)
    models, (inputs, parameter) = [head(), head()], encoder()
    for model in models:
        loss.run(model, inputs, y).loss.backward(retain_graph=True)
    torch.testing.assert_close(parameter.grad, both)


@pytest.mark.parametrize("deferred", [True, False])
def test_a_layer_of_the_model_that_computes_its_inputs_too(deferred):
    """Tied weights: both uses add up, and none counts twice."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.head(self.body(x).tanh())

    torch.manual_seed(0)
    model, y = Tied().double(), torch.arange(8) % CLASSES
    x = torch.randn(8, 6, dtype=torch.float64)
    found = []
    for gradient in (
        "double_backward",
        FiniteDifference("central", 1e-4, "absolute", deferred=deferred),
    ):
        model.zero_grad()
        loss = AverageMarginLoss(regularizer="softplus", gradient=gradient)
        loss.run(model, model.body(x), y).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_inputs_without_a_graph_get_no_gradient():
    x, y = torch.randn(8, 6).double(), torch.arange(8) % CLASSES
    AverageMarginLoss().run(head(), x, y).loss.backward()
    assert not x.requires_grad
    assert x.grad is None
