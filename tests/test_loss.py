"""AverageMarginLoss as a module: its settings, its refusals, and what it keeps."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, Regularizer


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4)).to(dtype)


def batch(size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 2, 2), torch.randint(4, (size,))


CRITERIA = {
    "defaults": {},
    "gap": {"margin": "logit_gap", "regularizer": "negative_ramp"},
    "everything": {
        "p": "inf",
        "mu": 0.3,
        "tau": 1.5,
        "regularizer": Regularizer.hinge(2),
        "gradient": "detached",
        "classes": "all",
        "weight": torch.tensor([1.0, 2.0, 0.5, 1.0]),
        "ignore_index": 3,
        "label_smoothing": 0.1,
        "reduction": "sum",
        "input_std": [0.5, 1.0, 2.0],
        "validate": True,
    },
}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("copying", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("used", [False, True])
def test_copies_give_the_same_loss(name, copying, used):
    model, (inputs, target) = make_model(), batch()
    criterion = AverageMarginLoss(**CRITERIA[name])
    if used:  # statistics and all
        criterion.run(model, inputs, target).loss.backward()
    copied = copying(criterion)
    assert repr(copied) == repr(criterion)
    a, b = (c.run(model, inputs, target).loss for c in (criterion, copied))
    assert torch.equal(a, b)


def test_class_weights_are_state_and_move():
    criterion = AverageMarginLoss(**CRITERIA["everything"])
    assert list(criterion.state_dict()) == ["weight"]
    other = AverageMarginLoss(weight=torch.zeros(4))
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.weight, CRITERIA["everything"]["weight"])
    assert criterion.double().weight.dtype == torch.float64
    assert criterion.to("meta").weight.is_meta
    assert AverageMarginLoss().state_dict() == {}
    assert not list(criterion.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_criterion_in_another_type(dtype):
    """A training script calls .to(dtype) on everything; margins stay in the unit that was asked."""
    model, (inputs, target) = make_model(torch.float64), batch()
    settings = {"input_std": [0.229, 0.224, 0.225], "gradient": "detached"}
    expected = AverageMarginLoss(**settings).run(model, inputs.double(), target)
    found = AverageMarginLoss(**settings).to(dtype).run(model, inputs.double(), target)
    torch.testing.assert_close(found.margin, expected.margin, rtol=1e-6, atol=0)


def test_repr_shows_the_settings():
    text = repr(AverageMarginLoss(**CRITERIA["everything"]))
    for part in (
        "p=inf",
        "mu=0.3",
        "hinge[0, 2]",
        "gradient=Detached()",
        "classes=all",
        "reduction=sum",
        "label_smoothing=0.1",
        "input_std=[0.5, 1.0, 2.0]",
    ):
        assert part in text
    assert "margin=logit_gap" in repr(AverageMarginLoss(margin="logit_gap"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0.5}, "p must be a number >= 1"),
        ({"mu": -1}, "mu must be at least 0, got -1"),
        ({"mu": math.nan}, "mu must be at least 0, got nan"),
        ({"tau": 0}, "lo < hi"),
        ({"tau": math.nan}, "must be finite"),
        ({"regularizer": "lamp"}, "regularizer must be .* got 'lamp'"),
        ({"margin": "second_order"}, "margin must be one of .* got 'second_order'"),
        ({"gradient": "jvp"}, "gradient must be one of .* got 'jvp'"),
        ({"classes": 0}, "classes must be .* got 0"),
        ({"classes": "top"}, "classes must be .* got 'top'"),
        ({"eps": 0}, "eps must be above 0, got 0"),
        ({"eps": math.nan}, "eps must be above 0, got nan"),
        ({"label_smoothing": 2}, "label_smoothing must lie in 0..1, got 2"),
        ({"reduction": "max"}, "reduction must be one of none, mean, sum, got 'max'"),
        ({"input_std": 0}, "input_std must be .* above 0 and finite, got 0"),
        ({"input_std": [0.5, -1]}, "input_std must be .* above 0"),
        ({"input_std": [[0.5]]}, "input_std must be a number or"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AverageMarginLoss(**settings)


def test_calls_refused():
    model, (inputs, target) = make_model(), batch()
    criterion = AverageMarginLoss(gradient="double_backward")
    with pytest.raises(ValueError, match=r"needs the inputs: call criterion\(logits, target"):
        criterion(model(inputs), target)
    with pytest.raises(ValueError, match="inputs must require grad before the model sees them"):
        criterion(model(inputs), target, inputs)
    x = inputs.clone().requires_grad_()
    with torch.no_grad():
        logits = model(x)
    with pytest.raises(ValueError, match=r"logits have no graph: .*no_grad"):
        criterion(logits, target, x)
    with pytest.raises(ValueError, match="not in the graph of logits: pass the very tensor"):
        criterion(model(x.clone()), target, inputs.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"inputs must be \[B, ...\] with B = 5"):
        criterion(model(x), target, x[:3])
    with pytest.raises(ValueError, match=r"target must be \[B\] = \[5\]"):
        criterion(model(x), target[:3], x)
    with pytest.raises(ValueError, match=r"target must lie in 0..3 .* got 9 at index 0"):
        criterion(model(x), torch.full_like(target, 9), x)
    with pytest.raises(ValueError, match="at least 2 classes"):
        criterion(model(x)[:, :0], torch.zeros_like(target), x)
    with pytest.raises(ValueError, match=r"class_weight must be \[4\], got \[3\]"):
        AverageMarginLoss(weight=torch.ones(3))(model(x), target, x)
    with pytest.raises(ValueError, match=r"input_std must .* \[3\] .*got \[2\]"):
        AverageMarginLoss(input_std=[1.0, 2.0])(model(x), target, x)


def test_the_callers_inputs_are_left_alone():
    model, (inputs, target) = make_model(), batch()
    before = inputs.clone()
    AverageMarginLoss(gradient="double_backward").run(model, inputs, target).loss.backward()
    assert not inputs.requires_grad
    assert inputs.grad is None
    assert torch.equal(inputs, before)


def test_inputs_keep_no_gradient_of_the_search():
    """Searching the nearest class leaves nothing in .grad of inputs or parameters."""
    model, (inputs, target) = make_model(), batch()
    x = inputs.requires_grad_()
    loss = AverageMarginLoss(classes="all", gradient="double_backward")(model(x), target, x)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("gradient", ["double_backward", "detached"])
def test_statistics_keep_no_graph_alive(gradient):
    """Activations of a step are gone when the next begins, though statistics are kept."""
    model, criterion = make_model(), AverageMarginLoss(gradient=gradient)
    alive = []
    kept = []
    for _ in range(4):
        inputs, target = batch()
        out = criterion.run(model, inputs, target)
        alive.append(weakref.ref(out.logits))
        out.loss.backward()
        kept.append((criterion.statistics, out.margin, out.gap, out.norm))
        del out
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4
    for statistics, *tensors in kept:
        assert not statistics.values_tensor.requires_grad
        assert all(t.grad_fn is None for t in tensors)


def test_a_loss_that_is_never_differentiated_is_freed():
    model, criterion = make_model(), AverageMarginLoss(gradient="double_backward")
    inputs, target = batch()
    out = criterion.run(model, inputs, target)
    ref = weakref.ref(out.logits)
    del out
    gc.collect()
    assert ref() is None


@pytest.mark.parametrize("gradient", ["double_backward", "detached"])
def test_autocast_bfloat16(gradient):
    """Logits in bfloat16, the input gradient in float32: near the float32 result."""
    model, (inputs, target) = make_model(), batch(16)
    criterion = AverageMarginLoss(gradient=gradient)
    expected = criterion.run(model, inputs, target)
    wanted = torch.autograd.grad(expected.loss, list(model.parameters()))
    x = inputs.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        assert logits.dtype == torch.bfloat16
        loss = criterion(logits, target, x)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.loss, rtol=0.03, atol=0.03)
    found = torch.autograd.grad(loss, list(model.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_gradient_accumulation_is_the_mean_of_the_parts():
    model, (inputs, target) = make_model(torch.float64), batch(8)
    inputs = inputs.double()
    criterion = AverageMarginLoss(gradient="double_backward")
    whole = torch.autograd.grad(criterion.run(model, inputs, target).loss, [*model.parameters()])
    for part in (slice(0, 4), slice(4, 8)):
        (criterion.run(model, inputs[part], target[part]).loss / 2).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_mu_rises_over_the_warmup():
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    plain = nn.functional.cross_entropy(model(x), y)
    full = AverageMarginLoss().run(model, x, y).loss - plain
    criterion = AverageMarginLoss(warmup=3)
    shares = [(criterion.run(model, x, y).loss - plain) / full for _ in range(5)]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0]))
    again = AverageMarginLoss(warmup=3)
    z = x.clone().requires_grad_()
    first = (again(model(z), y, z) - plain) / full
    torch.testing.assert_close(first, torch.tensor(0.25))
    again.eval()
    torch.testing.assert_close(again.run(model, x, y).loss - plain, full)
    with pytest.raises(ValueError, match="warmup must be a whole number"):
        AverageMarginLoss(warmup=-1)
