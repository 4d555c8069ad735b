"""Samples that see each other are found out, and the gradient is right or refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss, FiniteDifference

SHORT = FiniteDifference("central", 0.01, "absolute")
BATCH = 8


class Attention(nn.Module):
    """Each sample looks at all samples of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return x + self.heads(x[None], x[None], x[None])[0][0]


class Own(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def graph_convolution():
    edges = (torch.rand(BATCH, BATCH, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    edges = edges + torch.eye(BATCH).double()
    return Own(lambda x: edges @ x / edges.sum(1, keepdim=True))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.BatchNorm1d(8).double())


def normed(x):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3).sqrt()


LAYERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(8),
    "scripted BatchNorm": scripted,
    "functional batch_norm": lambda: Own(
        lambda x: nn.functional.batch_norm(x, None, None, training=True)
    ),
    "own batch norm": lambda: Own(normed),
    "own batch norm of parts": lambda: Own(lambda x: torch.cat([normed(c) for c in x.chunk(2)])),
    "graph convolution": graph_convolution,
    "attention over the batch": Attention,
    "softmax over the batch": lambda: Own(lambda x: 4 * x.softmax(0)),
    "pairs": lambda: Own(lambda x: x + 0.5 * x.roll(BATCH // 2, 0) ** 2),
    "one edge": lambda: Own(lambda x: torch.cat([x[:1] + x[3:4] ** 2, x[1:]])),
    "contrastive similarities": lambda: Own(lambda x: x + (x @ x.T).fill_diagonal_(0).tanh() @ x),
    "deviation of the batch": lambda: Own(
        lambda x: torch.cat([x[:, 1:], x.std(0).mean().expand(len(x), 1)], 1)
    ),
}


def network(layer):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Tanh(), nn.Linear(8, CLASSES)).double()


def data():
    return torch.randn(BATCH, 6).double(), torch.randint(CLASSES, (BATCH,))


def gradients(model, x, y, **settings):
    model.zero_grad()
    AverageMarginLoss(regularizer="softplus", **settings).run(model, x, y).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("scheme", ["central", "backward", "forward"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_that_of_coupled_samples(name, scheme):
    model, (x, y) = network(LAYERS[name]()), data()
    difference = FiniteDifference(scheme, 0.01 if scheme == "central" else 1e-5, "absolute")
    wanted = gradients(model, x, y)
    assert (gradients(model, x, y, gradient=difference) - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_losses_of_single_samples_are_refused(name):
    model, (x, y) = network(LAYERS[name]()), data()
    with pytest.raises(ValueError, match="another layer, makes samples depend on each other"):
        AverageMarginLoss(gradient=SHORT, reduction="none").run(model, x, y)


@pytest.mark.parametrize("mode", ["double_backward", "detached", "finite_difference"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "BatchNorm" not in name])
def test_running_statistics_are_refused_where_there_are_none(name, mode):
    model, (x, y) = network(LAYERS[name]()), data()
    criterion = AverageMarginLoss(gradient=mode, batchnorm="running")
    with pytest.raises(ValueError, match="through something without usable running statistics"):
        criterion.run(model, x, y)


@pytest.mark.parametrize("name", LAYERS)
def test_check_names_the_layer(name):
    layer = LAYERS[name]()
    found = str(AverageMarginLoss(regularizer="softplus").check(network(layer), *data()))
    if name != "scripted BatchNorm":  # a scripted layer is seen through what holds it
        assert "depend on each other, first in 1" in found, found
    assert "depend on each other, first in" in found, found


def test_check_names_a_function_around_the_model():
    model, (x, y) = network(nn.Identity()), data()
    found = AverageMarginLoss().check(model, x, y, logits_fn=lambda z: z - z.mean(0))
    assert "what turns the model's output into logits" in str(found)
    found = AverageMarginLoss().check(model, x, y)
    assert "depend on each other" not in str(found)


def test_a_function_around_the_model_is_found_out():
    model, (x, y) = network(nn.Identity()), data()
    criterion = AverageMarginLoss(gradient=SHORT, reduction="none")
    criterion.run(model, x, y, logits_fn=lambda z: 2 * z)
    with pytest.raises(ValueError, match="another layer, makes samples depend on each other"):
        criterion.run(model, x, y, logits_fn=lambda z: z - z.mean(0))


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.Dropout(0.5)], ids=str)
def test_independent_samples_stay_so(layer):
    model, (x, y) = network(layer), data()
    AverageMarginLoss(gradient=SHORT, reduction="none").run(model, x, y).loss.sum().backward()
    found = AverageMarginLoss().check(model, x, y)
    assert "depend on each other" not in str(found)


def test_a_change_of_mode_is_looked_at_again():
    class Normed(nn.Module):
        def forward(self, x):
            return normed(x) if self.training else x

    model, (x, y) = network(Normed()), data()
    criterion = AverageMarginLoss(gradient=SHORT, reduction="none")
    for _ in range(2):
        with pytest.raises(ValueError, match="makes samples depend"):
            criterion.run(model.train(), x, y)
        criterion.run(model.eval(), x, y)


def test_a_layer_that_is_replaced_is_looked_at_again():
    model, (x, y) = network(nn.Identity()), data()
    criterion = AverageMarginLoss(gradient=SHORT, reduction="none")
    criterion.run(model, x, y)
    model[1] = Own(normed)
    with pytest.raises(ValueError, match="makes samples depend"):
        criterion.run(model, x, y)


def test_a_look_leaves_no_trace():
    class Noting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.auxiliary = x.square().mean()
            return x

    layer = Noting()
    model, (x, y) = (
        nn.Sequential(nn.Linear(6, 8), layer, nn.BatchNorm1d(8), nn.Linear(8, 5)),
        data(),
    )
    model, state = model.double(), torch.get_rng_state()
    loss = AverageMarginLoss(gradient=SHORT).run(model, x, y).loss
    assert layer.calls == 1
    (loss + layer.auxiliary).backward()  # that of the first pass, with its graph
    assert int(model[2].num_batches_tracked) == 1
    assert torch.equal(torch.get_rng_state(), state)
