"""The criterion in validation: eval, no_grad and inference_mode."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from margin_ext import Additive, AverageMarginLoss, Distance

MODES = [
    {},
    {"gradient": "detached"},
    {"gradient": "auto"},
    {"gradient": "finite_difference"},
    {"margin": "secant"},
    {"margin": "distance"},
    {"margin": Distance(form="envelope")},
    {"margin": Additive(noise=1.0)},
    {"margin": "logit_gap"},
    {"fraction": 0.5},
    {"every": 2, "warmup": 5},
    {"batchnorm": "running"},
    {"reduction": "none"},
]
WITHOUT = [torch.no_grad, torch.inference_mode]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6), torch.arange(8) % 3


@pytest.mark.parametrize("settings", MODES, ids=str)
@pytest.mark.parametrize("context", WITHOUT)
@pytest.mark.parametrize("training", [True, False])
def test_run_gives_the_whole_loss_without_a_graph(settings, context, training):
    model, (x, y) = network().train(training), data()
    criterion = AverageMarginLoss(**settings).train(training)
    whole = {k: v for k, v in settings.items() if k not in ("fraction", "every", "warmup")}
    wanted = AverageMarginLoss(**whole).eval().run(copy.deepcopy(model), x, y)
    with context():
        x, y = x.clone(), y.clone()  # inference tensors, as a loader makes them inside
        out = criterion.run(model, x, y)
        assert not out.loss.requires_grad
        assert not out.logits.requires_grad
        assert not out.output.requires_grad
    torch.testing.assert_close(out.loss, wanted.loss.detach())
    torch.testing.assert_close(out.margin, wanted.margin)
    assert criterion.steps == 0
    assert criterion.statistics is out.statistics
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("settings", MODES, ids=str)
@pytest.mark.parametrize("context", WITHOUT)
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_plain_call_gives_the_cross_entropy(settings, context, with_inputs, training):
    model, (x, y) = network().eval(), data()
    criterion = AverageMarginLoss(**settings).train(training)
    with context():
        logits = model(x)
        loss = criterion(logits, y, x if with_inputs else None)
        ce = nn.functional.cross_entropy(logits, y, reduction=criterion.reduction)
    if settings.get("margin") == "logit_gap":
        wanted = criterion.run(model, x, y).loss.detach()
        torch.testing.assert_close(loss, wanted)
        return
    torch.testing.assert_close(loss, ce)
    assert bool(criterion.statistics.average_margin.isnan())
    assert float(criterion.statistics.accuracy) == float((logits.argmax(1) == y).float().mean())


@pytest.mark.parametrize("with_inputs", [True, False])
def test_eval_mode_with_gradients_on(with_inputs):
    """As where a validation forgets no_grad."""
    model, (x, y) = network().eval(), data()
    criterion = AverageMarginLoss().eval()
    loss = criterion(model(x), y, x if with_inputs else None)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(x), y))
    x.requires_grad_()
    torch.testing.assert_close(criterion(model(x), y, x), criterion.run(model, x, y).loss)


def test_training_is_still_told_what_is_missing():
    model, (x, y) = network(), data()
    with pytest.raises(ValueError, match="needs the inputs"):
        AverageMarginLoss()(model(x), y)
    with torch.no_grad():
        logits = model(x)
    with pytest.raises(ValueError, match="logits have no graph"):
        AverageMarginLoss()(logits, y, x.requires_grad_())


@pytest.mark.parametrize("context", [*WITHOUT, nullcontext])
def test_a_module_with_its_criterion_inside(context):
    """As Lightning does: the whole module is put in eval mode, the criterion with it."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.criterion = network(), AverageMarginLoss(every=2)

        def training_step(self, batch):
            return self.criterion.run(self.net, *batch).loss

        def validation_step(self, batch):
            x, y = batch
            return self.criterion(self.net(x), y)

    module, batch = Classifier(), data()
    module.training_step(batch).backward()
    module.eval()
    with context():
        value = module.validation_step(batch)
        torch.testing.assert_close(
            value, nn.functional.cross_entropy(module.net(batch[0]), batch[1])
        )
    module.train()
    module.training_step(batch).backward()
    assert module.criterion.steps == 2
