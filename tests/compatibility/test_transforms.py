"""torch.func over the functional layer, and training loops of other shapes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from compatibility.networks import (
    CLASSES,
    FIRST_ORDER_MODES,
    criterion,
    mlp,
    relative,
    step,
    vectors,
)
from margin_ext import AverageMarginLoss, functional
from margin_ext.regularizers import Regularizer


def test_vmap_and_grad_of_the_functional_layer():
    logits = torch.randn(3, 5, CLASSES, dtype=torch.float64)
    grads = torch.randn(3, 5, 7, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (3, 5))

    def margin(z, y, g):
        found = functional.first_order_margin(functional.logit_gap(z, y).gap, g)
        return found.margin.sum()

    mapped = torch.func.vmap(torch.func.grad(margin, argnums=(0, 2)))(logits, target, grads)
    for row in range(3):
        alone = torch.func.grad(margin, argnums=(0, 2))(logits[row], target[row], grads[row])
        for found, wanted in zip(mapped, alone, strict=True):
            torch.testing.assert_close(found[row], wanted)
        z, g = logits[row].clone().requires_grad_(), grads[row].clone().requires_grad_()
        plain = torch.autograd.grad(margin(z, target[row], g), (z, g))
        for found, wanted in zip(mapped, plain, strict=True):
            torch.testing.assert_close(found[row], wanted)


def test_per_sample_parameter_gradients_of_the_loss():
    model, (x, y) = mlp().double(), vectors()
    parameters = dict(model.named_parameters())

    def loss(parameters, x, y):
        def gap(x):
            z = torch.func.functional_call(model, parameters, (x[None],))
            return functional.logit_gap(z, y[None]).gap.squeeze(0)

        z = torch.func.functional_call(model, parameters, (x[None],))
        return functional.average_margin_loss(
            z, y[None], torch.func.grad(gap)(x)[None], regularizer=Regularizer.softplus(3.0)
        ).loss

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x.double(), y)
    mean = torch.cat([g.mean(0).flatten() for g in found.values()]).detach()
    assert relative(mean, step(criterion("double_backward"), model, x.double(), y)[1]) < 1e-9


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_gradient_accumulation(mode):
    model, (x, y) = mlp().double(), vectors(8)
    x = x.double()
    wanted = step(criterion(mode), model, x, y)[1]
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 8)):
        criterion(mode).run(model, x[part], y[part], normalizer=8).loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(found, wanted) < 1e-9


def test_the_loss_can_be_taken_twice():
    """Two backward calls through one loss, and a loss next to another."""
    model, (x, y) = mlp().double(), vectors()
    for mode in FIRST_ORDER_MODES:
        wanted = step(criterion(mode), model, x.double(), y)[1]
        out = criterion(mode).run(model, x.double(), y)
        model.zero_grad()
        out.loss.backward(retain_graph=True)
        (2 * out.loss + 0 * out.logits.sum()).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert relative(found, 3 * wanted) < 1e-9
        model.zero_grad()


def test_mixed_labels_are_the_expectation_over_labels():
    """Mixup: each label's loss with its share; the cross-entropy is that of the soft label."""
    model, (x, y) = mlp().double(), vectors()
    x = (0.7 * x + 0.3 * x.flip(0)).double().requires_grad_()
    logits = model(x)
    plain = AverageMarginLoss(mu=0.0)
    mixed = 0.7 * plain(logits, y, x) + 0.3 * plain(logits, y.flip(0), x)
    soft = 0.7 * one_hot(y, CLASSES) + 0.3 * one_hot(y.flip(0), CLASSES)
    torch.testing.assert_close(mixed, cross_entropy(logits, soft.double()))
    criterion = AverageMarginLoss(regularizer="softplus")
    loss = 0.7 * criterion(logits, y, x) + 0.3 * criterion(logits, y.flip(0), x)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert all(g.isfinite().all() for g in grads)
