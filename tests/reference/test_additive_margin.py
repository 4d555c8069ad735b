"""The additive margin: closed forms, ties, masked classes, and both derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from margin_ext import functional, reference

MODULES = [reference, functional]
NORMS = [1, 2, "inf", 3]


def batch(n=12, classes=4, dims=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator, dtype=dtype)
    grad = torch.randn(n, dims, generator=generator, dtype=dtype)
    return logits, torch.arange(n) % classes, grad


def dual_norm(grad, p):
    q = {1: math.inf, 2: 2, "inf": 1, 3: 1.5}[p]
    return torch.linalg.vector_norm(grad, q, dim=1)


@pytest.mark.parametrize("module", MODULES)
def test_log_odds(module):
    z, y, _ = batch()
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    odds = module.log_odds(z, y)
    torch.testing.assert_close(odds, (p / (1 - p)).log())
    torch.testing.assert_close(softplus(-odds), cross_entropy(z, y, reduction="none"))
    hard = reference.logit_gap(z, y).gap
    assert bool((odds <= hard + 1e-12).all())
    assert bool((odds >= hard - math.log(3) - 1e-12).all())
    torch.testing.assert_close(
        module.log_odds(z[:, :2], y % 2), reference.logit_gap(z[:, :2], y % 2).gap
    )
    ignored = torch.where(y == 1, -100, y)
    assert torch.equal(module.log_odds(z, ignored).isnan(), y == 1)
    alone = torch.full((1, 3), -math.inf, dtype=torch.float64).index_fill(1, torch.tensor([1]), 2.0)
    alone.requires_grad_()
    found = module.log_odds(alone, torch.tensor([1]))
    assert float(found.detach()) == math.inf
    (grad,) = torch.autograd.grad(found.sum(), alone)
    assert not bool(grad.any())
    assert torch.autograd.gradgradcheck(lambda z: module.log_odds(z, y), z.requires_grad_())


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("p", NORMS)
def test_it_is_softplus_of_what_a_step_could_cost(module, p):
    z, y, grad = batch()
    out = module.additive_margin_loss(z, y, grad, tau=0.7, p=p)
    norm, odds = dual_norm(grad, p), reference.log_odds(z, y)
    torch.testing.assert_close(out.loss, softplus(0.7 * norm - odds).mean())
    torch.testing.assert_close(out.norm, norm)
    torch.testing.assert_close(out.gap, odds)
    torch.testing.assert_close(out.margin, odds / norm)
    s = out.statistics
    torch.testing.assert_close(s.minimum_margin, (odds / norm).min())
    torch.testing.assert_close(s.average_margin, (odds / norm).mean())
    torch.testing.assert_close(s.average_gap, odds.mean())
    torch.testing.assert_close(s.average_gradient_norm, norm.mean())
    torch.testing.assert_close(s.accuracy, (z.argmax(1) == y).double().mean())
    torch.testing.assert_close(s.cross_entropy, cross_entropy(z, y))
    torch.testing.assert_close(s.regularizer, out.loss - cross_entropy(z, y))
    assert float(s.count) == 12
    mixed = module.additive_margin_loss(z, y, grad, tau=0.7, p=p, mu=0.8).loss
    torch.testing.assert_close(mixed, 0.2 * cross_entropy(z, y) + 0.8 * out.loss)
    none = module.additive_margin_loss(z, y, grad, tau=0.0, p=p).loss
    torch.testing.assert_close(none, cross_entropy(z, y))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_on_a_linear_classifier_it_is_the_worst_cross_entropy_in_the_ball(module, p):
    """Of two classes: nothing within tau has a larger one, and the dual step has this one."""
    torch.manual_seed(0)
    w, x = torch.randn(2, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    y = torch.arange(9) % 2
    grad = w[y] - w[1 - y]
    loss = module.additive_margin_loss(x @ w.T, y, grad, tau=0.4, p=p, reduction="none").loss
    ones = torch.full((9,), -0.4, dtype=torch.float64)
    worst = functional.dual_direction(grad, ones, p=p, base=x)
    torch.testing.assert_close(cross_entropy(worst @ w.T, y, reduction="none"), loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("p", NORMS)
def test_the_composed_loss_is_the_reference(p, reduction, weighted, smoothing):
    z, y, grad = batch()
    y[3], grad[5] = -100, 0.0
    z[7, 2] = -math.inf if not smoothing else 0.0
    weight = torch.tensor([1.0, 2.0, 0.0, -0.5], dtype=torch.float64) if weighted else None
    options = {
        "tau": 0.7, "p": p, "mu": 0.6, "weight": weight, "label_smoothing": smoothing,
        "reduction": reduction, "input_std": 0.5,
    }  # fmt: skip
    found = []
    for module in MODULES:
        leaves = z.clone().requires_grad_(), grad.clone().requires_grad_()
        out = module.additive_margin_loss(leaves[0], y, leaves[1], **options)
        found.append(
            (
                *out[:4],
                out.statistics.values_tensor[:-1],
                *torch.autograd.grad(out.loss.sum(), leaves),
            )
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert bool(found[0][-1].isfinite().all())
    assert not bool(found[0][-1][[3, 5]].any())


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("p", [2, "inf", 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_derivatives(module, p, smoothing):
    z, y, grad = batch(5)
    inputs = z.requires_grad_(), grad.requires_grad_()

    def loss(z, grad):
        return module.additive_margin_loss(
            z, y, grad, tau=0.7, p=p, mu=0.6, label_smoothing=smoothing
        ).loss

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("module", MODULES)
def test_a_tiny_norm_keeps_its_gradient_and_a_zero_has_none(module):
    z, y, _ = batch(2)
    grad = torch.zeros(2, 5, dtype=torch.float64)
    grad[0, 1] = 1e-9
    grad.requires_grad_()
    loss = module.additive_margin_loss(z, y, grad, tau=0.7).loss
    torch.testing.assert_close(loss, cross_entropy(z, y))
    (found,) = torch.autograd.grad(loss, grad)
    p = z.softmax(1)[0, y[0]]
    wanted = torch.zeros(2, 5, dtype=torch.float64)
    wanted[0, 1] = 0.7 * (1 - p) / 2
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("module", MODULES)
def test_masked_classes(module):
    z, y, grad = batch(4)
    z[0, 1:] = -math.inf  # the label is alone
    z[1, 2:] = -math.inf
    z, grad = z.requires_grad_(), grad.requires_grad_()
    out = module.additive_margin_loss(z, y, grad, tau=0.7)
    out.loss.backward()
    assert float(out.gap[0]) == float(out.margin[0]) == math.inf
    assert bool(out.loss.isfinite())
    assert bool(z.grad.isfinite().all())
    assert bool(grad.grad.isfinite().all())
    assert not bool(grad.grad[0].any())


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types(module, dtype):
    z, y, grad = batch(dtype=torch.float32)
    out = module.additive_margin_loss(z.to(dtype), y, grad.to(dtype), tau=0.7)
    exact = module.additive_margin_loss(z.to(dtype).double(), y, grad.to(dtype).double(), tau=0.7)
    assert out.loss.dtype == out.margin.dtype == out.norm.dtype == torch.float32
    for one, other in zip(out[:4], exact[:4], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", MODULES)
def test_an_empty_batch(module):
    z, y, grad = (each[:0] for each in batch())
    assert float(module.additive_margin_loss(z, y, grad, tau=1.0, reduction="sum").loss) == 0
    assert bool(module.additive_margin_loss(z, y, grad, tau=1.0).loss.isnan())


@pytest.mark.parametrize("module", MODULES)
def test_what_does_not_fit_is_refused(module):
    z, y, grad = batch()
    with pytest.raises(ValueError, match="tau must be at least 0, got -1"):
        module.additive_margin_loss(z, y, grad, tau=-1.0)
    with pytest.raises(TypeError, match="regularizer"):
        module.additive_margin_loss(z, y, grad, tau=1.0, regularizer="ramp")
    with pytest.raises(ValueError, match="grad"):
        module.additive_margin_loss(z, y, grad[:-1], tau=1.0)
    with pytest.raises(ValueError, match="one class label a sample"):
        module.additive_margin_loss(z, z.softmax(1), grad, tau=1.0)
    with pytest.raises(ValueError, match=r"label|target"):
        module.additive_margin_loss(z, y + 3, grad, tau=1.0)
    with pytest.raises(ValueError, match=r"C >= 2|classes"):
        module.additive_margin_loss(z[:, :1], y * 0, grad, tau=1.0)
