"""margin="additive": the label's logit is lowered by tau times the gradient norm."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradient_modes.small_problems import Recorded, gradients
from margin_ext import Additive, AverageMarginLoss
from margin_ext.reference import log_odds
from margin_ext.second_derivative import SecondDerivativeError
from margin_ext.threat import ThreatModel


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.GELU(), nn.Dropout(dropout), nn.Linear(12, 4)
    ).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 4


@pytest.mark.parametrize("p", [1, 2, "inf", 3])
@pytest.mark.parametrize("call", ["run", "forward"])
def test_loss_and_gradient_are_those_of_the_formula(p, call):
    """By numbers too: the class probabilities in the gap's own gradient are differentiated."""
    model, (x, y) = network(), data()
    criterion = AverageMarginLoss(margin="additive", p=p, tau=0.6, mu=0.7)

    def loss(model: nn.Module) -> torch.Tensor:
        if call == "run":
            return criterion.run(model, x, y).loss
        inputs = x.clone().requires_grad_()
        return criterion(model(inputs), y, inputs)

    def formula(model: nn.Module) -> torch.Tensor:
        inputs = x.clone().requires_grad_()
        logits = model(inputs)
        (grad,) = torch.autograd.grad(log_odds(logits, y).sum(), inputs, create_graph=True)
        q = {1: math.inf, 2: 2, "inf": 1, 3: 1.5}[p]
        norm = torch.linalg.vector_norm(grad, q, dim=1, keepdim=True)
        lowered = logits - 0.6 * norm * nn.functional.one_hot(y, 4)
        return 0.3 * cross_entropy(logits, y) + 0.7 * cross_entropy(lowered, y)

    torch.testing.assert_close(loss(model), formula(model))
    ours = gradients(loss(model), model)
    torch.testing.assert_close(ours, gradients(formula(model), model))
    direction = [torch.randn_like(p) for p in model.parameters()]

    def moved(step: float) -> torch.Tensor:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, d in zip(twin.parameters(), direction, strict=True):
                parameter.add_(d, alpha=step)
        return loss(twin).detach()

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(
        ours @ torch.cat([d.flatten() for d in direction]), numeric, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_noise_costs_no_pass_and_stays_in_ball_and_range(p):
    model, (x, y) = Recorded(network()), data()
    x = x.clamp(-1, 1)
    mode = Additive(noise=1.5, data_range=(-1.0, 1.0))
    criterion = AverageMarginLoss(margin=mode, p=p, tau=0.6)
    out = criterion.run(model, x, y)
    (seen,) = model.seen
    assert not torch.equal(seen, x)
    assert float(ThreatModel(p=float(p)).distance(seen, x).max()) <= 0.9 * (1 + 1e-9)
    assert float(seen.abs().max()) <= 1
    quiet = AverageMarginLoss(margin="additive", p=p, tau=0.6).run(model.net, seen, y)
    torch.testing.assert_close(out.loss, quiet.loss)
    assert torch.equal(out.logits, quiet.logits)
    criterion.eval().run(model, x, y)
    assert torch.equal(model.seen[-1], x)


def test_noise_moves_with_inputs_that_have_a_graph():
    model, (x, y) = network(), data()
    x.requires_grad_()
    torch.manual_seed(2)
    AverageMarginLoss(margin=Additive(noise=1.0), tau=0.5).run(model, x, y).loss.backward()
    assert bool(x.grad.any())


def test_what_it_cannot_serve_is_refused():
    model, (x, y) = network(), data()
    with pytest.raises(ValueError, match="one class label a sample"):
        AverageMarginLoss(margin="additive").run(model, x, torch.randn(10, 4).softmax(1).double())
    with pytest.raises(ValueError, match="regularizer='hinge' has no effect with margin=\"add"):
        AverageMarginLoss(margin="additive", regularizer="hinge")
    with pytest.raises(ValueError, match="leave out classes='all'"):
        AverageMarginLoss(margin="additive", classes="all")
    with pytest.raises(ValueError, match="has no effect with margin="):
        AverageMarginLoss(margin="additive", gradient="finite_difference")
    with pytest.raises(ValueError, match="noise must be at least 0"):
        Additive(noise=-1.0)
    inputs = x.clone().requires_grad_()
    noisy = AverageMarginLoss(margin=Additive(noise=1.0))
    with pytest.raises(ValueError, match=r"criterion\.run\(model, inputs, target\)"):
        noisy(model(inputs), y, inputs)

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return (grad * (1 - x.tanh() ** 2)).detach()

    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(Constant.apply(x))

    with pytest.raises(SecondDerivativeError, match="graph of the input gradient is lost"):
        AverageMarginLoss(margin="additive").run(Lost(), x, y)


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"every": 2}, {"warmup": 3}], ids=str)
def test_it_goes_with_the_options_of_steps(options):
    model, (x, y) = network(), data()
    criterion = AverageMarginLoss(margin="additive", tau=0.5, **options)
    for _ in range(4):
        criterion.run(model, x, y).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
