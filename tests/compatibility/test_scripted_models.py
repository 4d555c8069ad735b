"""TorchScript and exported modules: their normalisation is seen, or margins are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, Distance, FiniteDifference, measure

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = FiniteDifference("central", 0.01, "absolute")
CLASSES = 3


def batchnorm():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)
    ).double()


def two_dimensional():
    layers = [nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4, momentum=0.3)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)).double()


def instance_norm():
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    layers = [nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), norm, nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES)).double()


def data():
    return torch.randn(8, 6).double(), torch.randint(CLASSES, (8,))


HOW = {
    "script": lambda model, x: torch.jit.script(model),
    "script of a part": lambda model, x: nn.Sequential(torch.jit.script(model)),
    "trace": lambda model, x: torch.jit.trace(model, x, check_trace=False),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
}
SETTINGS = [
    {},
    {"gradient": "detached"},
    {"gradient": "finite_difference"},
    {"gradient": SHORT},
    {"gradient": FiniteDifference("central", 0.01, "absolute", deferred=False)},
    {"margin": "secant"},
    {"margin": Distance(form="envelope")},
]


def step(model, x, y, **settings):
    torch.manual_seed(0)
    model.zero_grad()
    AverageMarginLoss(regularizer="softplus", **settings).run(model, x, y).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def statistics(model):
    return torch.cat([b.double().flatten() for b in model.buffers()])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("make", [batchnorm, two_dimensional, instance_norm])
def test_gradient_and_statistics_are_those_of_the_module(make, how, settings):
    x, y = data()
    plain = make()
    model = HOW[how](copy.deepcopy(plain), x)
    before = statistics(model) - statistics(plain)  # tracing runs the module
    if how == "trace":
        plain.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        before = torch.zeros_like(before)
    for _ in range(2):
        wanted, found = step(plain, x, y, **settings), step(model, x, y, **settings)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(statistics(model) - before, statistics(plain))


@pytest.mark.parametrize("gradient", ["double_backward", "detached", SHORT], ids=str)
def test_a_script_has_its_running_statistics(gradient):
    x, y = data()
    plain = batchnorm()
    model = torch.jit.script(copy.deepcopy(plain))
    settings = {"gradient": gradient, "batchnorm": "running"}
    torch.testing.assert_close(step(model, x, y, **settings), step(plain, x, y, **settings))
    assert torch.equal(statistics(model), statistics(plain))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("gradient", ["double_backward", "detached", SHORT], ids=str)
@pytest.mark.parametrize("how", ["trace", "export"])
def test_what_cannot_use_running_statistics_is_refused(how, gradient):
    x, y = data()
    model = HOW[how](batchnorm(), x)
    with pytest.raises(ValueError, match="a module that was exported or traced in training mode"):
        step(model, x, y, gradient=gradient, batchnorm="running")
    # As it is in evaluation, nothing depends on the batch.
    step(HOW[how](batchnorm().eval(), x), x, y, gradient=gradient, batchnorm="running")


@pytest.mark.parametrize("how", HOW)
def test_losses_of_single_samples_are_refused_in_training(how):
    x, y = data()
    criterion = AverageMarginLoss(gradient=SHORT, reduction="none")
    with pytest.raises(ValueError, match="makes samples depend on each other"):
        criterion.run(HOW[how](batchnorm(), x), x, y)
    criterion.run(HOW[how](batchnorm().eval(), x), x, y).loss.sum().backward()


def test_a_fraction_moves_the_statistics_once():
    x, y = data()
    plain = batchnorm()
    with torch.no_grad():
        moved = copy.deepcopy(plain)
        moved(x)
    for how in ("script", "export"):
        model = HOW[how](copy.deepcopy(plain), x) if how == "script" else None
        if model is None:  # for batches of any size
            sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
            program = torch.export.export(copy.deepcopy(plain), (x,), dynamic_shapes=sizes)
            model = program.module()
        step(model, x, y, fraction=0.5)
        torch.testing.assert_close(statistics(model), statistics(moved))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_they_can_be_measured(how):
    x, y = data()
    plain = batchnorm().eval()
    found, wanted = (measure(model, [(x, y)]) for model in (HOW[how](plain, x), plain))
    assert found.average_margin == pytest.approx(wanted.average_margin)
