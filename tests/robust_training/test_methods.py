"""The methods that are compared: their losses and how many settings each may try."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from benchmarks.robust_training.methods import METHODS
from benchmarks.robust_training.objectives import InputGradientPenalty
from benchmarks.robust_training.problems import PROBLEMS
from margin_ext.training import AdversarialTraining
from robust_training.tiny_problem import TINY, images, network


def batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return network(), *images(6, seed=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_adversarial_training_minimises_the_loss_at_a_worse_point_of_the_ball(steps):
    model, x, y = batch()
    seen = []
    model.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    eps = 0.5
    loss = AdversarialTraining(eps, steps).loss(model, x, y)
    worst = seen[-1]
    assert len(seen) == steps + 1
    assert float((worst - x).flatten(1).norm(dim=1).max()) <= eps * (1 + 1e-5)
    assert float(worst.min()) >= 0
    assert float(worst.max()) <= 1
    assert loss > nn.functional.cross_entropy(model(x), y) * 1.01


def test_the_penalty_is_the_norm_of_the_gradient():
    model, x, y = batch()
    plain = InputGradientPenalty(0.0).loss(model, x, y)
    ours = InputGradientPenalty(2.0).loss(model, x, y)
    twin = x.clone().requires_grad_()
    each = nn.functional.cross_entropy(model(twin), y, reduction="none")
    (grad,) = torch.autograd.grad(each.sum(), twin)
    expected = 2 * grad.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(ours - plain, expected)
    ours.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("key", sorted(METHODS))
def test_every_method_has_a_loss_and_gradients_with_every_setting(key):
    method = METHODS[key]
    for setting in method.grid(TINY):
        model, x, y = batch()
        objective = method.objective(0.5, setting)
        # Methods with a memory ask which samples they are.
        tell = getattr(objective, "samples", lambda indices: nullcontext())
        with tell(torch.arange(len(y))):
            loss = objective.loss(model, x, y)
        loss.backward()
        assert loss.isfinite()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        assert json.dumps(objective.settings())


def test_peers_are_tuned_as_much_as_margins():
    fixed = {"adversarial_7_radius", "adversarial_3_alternating_accurate"}
    chosen = [key for key in METHODS if key.startswith("adversarial") and key not in fixed]
    assert len(chosen) == 7
    for problem in PROBLEMS.values():
        sizes = {key: len(method.grid(problem)) for key, method in METHODS.items()}
        most = max(size for key, size in sizes.items() if METHODS[key].group != "peer")
        for key in chosen:
            assert sizes[key] == most
            tried = {setting["eps"] for setting in METHODS[key].grid(problem)}
            assert {1.0, 1.25, 1.5} <= tried


def test_the_radius_grows_where_a_network_does_not_begin_to_learn():
    relu, gelu = PROBLEMS["mnist_relu_cnn"], PROBLEMS["mnist_cnn"]
    for key in ("adversarial_1", "adversarial_2", "adversarial_7_radius"):
        for setting in METHODS[key].grid(relu):
            assert METHODS[key].objective(relu.aim, setting).warmup == 235
        for setting in METHODS[key].grid(gelu):
            assert METHODS[key].objective(gelu.aim, setting).warmup == 0


# The rule of choice.
