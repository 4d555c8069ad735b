"""Parameter gradients of real networks against plain PyTorch: torch.linalg.vector_norm and double
backward, in float64.
"""

from __future__ import annotations

import copy
import math

import plain_torch
import pytest
import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss, Regularizer

# Every sample's margin lies within: misclassified ones push too.
MU, PHI = 0.8, Regularizer.ramp(-8, 8)
CLASSES = 5


def network(activation: type[nn.Module] = nn.GELU, norm: bool = True) -> nn.Sequential:
    """Convolutions, BatchNorm with statistics of its own, pooling: every part has a second
    derivative that matters.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        activation(),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 8, 8, dtype=torch.float64), torch.randint(CLASSES, (size,))


def nearest_class(logits, inputs, target, p, count) -> Tensor:
    """Of the `count` classes with the largest logits, the one with the smallest margin."""
    found = []
    for i in range(len(target)):
        others = [k for k in logits[i].argsort(descending=True).tolist() if k != target[i]]
        margins = {}
        for k in others[:count]:
            gap = logits[i, target[i]] - logits[i, k]
            (grad,) = torch.autograd.grad(gap, inputs, retain_graph=True)
            norm = torch.linalg.vector_norm(grad[i].flatten(), plain_torch.dual_exponent(p))
            margins[k] = float(gap.detach() / norm)
        found.append(min(margins, key=margins.__getitem__))
    return torch.tensor(found)


def plain_loss(model, inputs, target, p=2, count=1, create_graph=True, std=1.0) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    logits = model(inputs)
    critical = nearest_class(logits, inputs, target, p, count)
    gap = plain_torch.gap(logits, target, critical)
    (grad,) = torch.autograd.grad(gap.sum(), inputs, create_graph=create_graph, retain_graph=True)
    norm = torch.linalg.vector_norm((grad / std).flatten(1), plain_torch.dual_exponent(p), dim=1)
    phi = torch.clamp(8 - gap / norm, 0, 16)
    return nn.functional.cross_entropy(logits, target) + MU * phi.mean()


def parameter_gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same_gradients(found, expected):
    """To 1e-10 of the largest: that of a bias before BatchNorm is 0 but for rounding."""
    scale = max(float(theirs.abs().max()) for theirs in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
@pytest.mark.parametrize("p", [1, 2, math.inf, 3])
@pytest.mark.parametrize("call", ["forward", "run"])
def test_double_backward(call, p, activation, train):
    model = network(activation).train(train)
    other = copy.deepcopy(model)
    inputs, target = batch()
    criterion = AverageMarginLoss(p=p, mu=MU, regularizer=PHI, gradient="double_backward")
    if call == "run":
        loss = criterion.run(model, inputs, target).loss
    else:
        x = inputs.clone().requires_grad_()
        loss = criterion(model(x), target, x)
    expected = plain_loss(other, inputs, target, p)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(parameter_gradients(model, loss), parameter_gradients(other, expected))
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("classes", "count"), [("runner_up", 1), (2, 2), (3, 3), ("all", 4)])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_class_rules(p, classes, count):
    model = network(norm=False)
    inputs, target = batch(8)
    criterion = AverageMarginLoss(
        p=p, mu=MU, regularizer=PHI, gradient="double_backward", classes=classes
    )
    loss = criterion.run(model, inputs, target).loss
    expected = plain_loss(model, inputs, target, p, count)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(parameter_gradients(model, loss), parameter_gradients(model, expected))


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_detached(p):
    model = network().eval()
    inputs, target = batch()
    criterion = AverageMarginLoss(p=p, mu=MU, regularizer=PHI, gradient="detached")
    loss = criterion.run(model, inputs, target).loss
    expected = plain_loss(model, inputs, target, p, create_graph=False)
    assert_same_gradients(parameter_gradients(model, loss), parameter_gradients(model, expected))
    exact = parameter_gradients(model, plain_loss(model, inputs, target, p))
    found = parameter_gradients(model, criterion.run(model, inputs, target).loss)
    assert not torch.allclose(found[0], exact[0], rtol=1e-3), "the mode makes no difference here"


def test_gap_is_the_authors_formula():
    """CE + mu * mean of clamp(-gap, 0, tau)."""
    model = network().eval()
    inputs, target = batch()
    criterion = AverageMarginLoss(mu=0.1, tau=0.3, margin="logit_gap", regularizer="negative_ramp")
    loss = criterion(model(inputs), target)
    logits = model(inputs)
    gap = plain_torch.gap(logits, target)
    expected = nn.functional.cross_entropy(logits, target) + 0.1 * gap.neg().clamp(0, 0.3).mean()
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(parameter_gradients(model, loss), parameter_gradients(model, expected))


class Unnormalised(nn.Module):
    """Takes pixels, normalises them as a loader would."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std)


@pytest.mark.parametrize("p", [1, 2, math.inf, 3])
@pytest.mark.parametrize("gradient", ["double_backward", "detached"])
def test_input_std_is_training_on_pixels(gradient, p):
    model = network().eval()
    normalised, target = batch()
    std = torch.tensor([0.2, 0.5, 2.0], dtype=torch.float64)
    mean = torch.tensor([0.4, -0.1, 0.3], dtype=torch.float64)[:, None, None]
    pixels = normalised * std[:, None, None] + mean
    wrapped = Unnormalised(model, mean, std[:, None, None])
    settings = {"p": p, "mu": MU, "regularizer": PHI, "gradient": gradient, "classes": 2}
    found = AverageMarginLoss(input_std=std.tolist(), **settings).run(model, normalised, target)
    expected = AverageMarginLoss(**settings).run(wrapped, pixels, target)
    torch.testing.assert_close(found.margin, expected.margin)
    assert_same_gradients(
        parameter_gradients(model, found.loss), parameter_gradients(model, expected.loss)
    )


def test_channels_last_model_gives_the_same():
    model = network().eval()
    inputs, target = batch()
    criterion = AverageMarginLoss(
        mu=MU, regularizer=PHI, gradient="double_backward", input_std=[1, 2, 3]
    )
    expected = parameter_gradients(model, criterion.run(model, inputs, target).loss)
    model.to(memory_format=torch.channels_last)
    loss = criterion.run(model, inputs.to(memory_format=torch.channels_last), target).loss
    assert_same_gradients(parameter_gradients(model, loss), expected)


def test_training_lifts_the_average_margin():
    """A few steps on separable data: what the loss is for."""
    target = torch.arange(30) % CLASSES
    inputs = torch.randn(CLASSES, 3, 8, 8)[target] + 0.5 * torch.randn(30, 3, 8, 8)
    averages = []
    for mu in (0.0, 1.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Linear(64, CLASSES))
        criterion = AverageMarginLoss(mu=mu, tau=8.0, gradient="double_backward")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(40):
            optimizer.zero_grad()
            criterion.run(model, inputs, target).loss.backward()
            optimizer.step()
        assert float(criterion.statistics.accuracy) == 1
        averages.append(float(criterion.statistics.average_margin))
    assert averages[1] > 1.1 * averages[0] > 0
