"""Options of the loss: changed later, refused where they have no effect, extended."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import nn

from margin_ext import (
    Auto,
    AverageMarginLoss,
    Detached,
    FiniteDifference,
    GradientMode,
    LossOptions,
    Regularizer,
    Secant,
    functional,
    reference,
    register_gradient_mode,
    register_regularizer,
)
from margin_ext.loss_settings import LossKeywords, LossSettings
from margin_ext.regularizers import resolve_regularizer

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def step(criterion: AverageMarginLoss) -> torch.Tensor:
    net = network()
    out = criterion.run(net, X, Y)
    out.loss.sum().backward()
    grads = [p.grad.flatten() for p in net.parameters()]
    return torch.cat([out.loss.detach().reshape(-1), out.margin.reshape(-1), *grads])


CHANGES = {
    "p": 1,
    "mu": 0.5,
    "tau": 1.0,
    "regularizer": "softplus",
    "margin": "secant",
    "gradient": "finite_difference",
    "classes": "all",
    "eps": 10.0,
    "weight": torch.tensor([1.0, 2.0, 0.5]),
    "ignore_index": 1,
    "label_smoothing": 0.2,
    "reduction": "sum",
    "input_std": 0.5,
    "fraction": 0.5,
    "every": 2,
    "warmup": 3,
    "batchnorm": "running",
    "aggregation": "worst",
    "validate": True,
}


def test_every_option_is_changed_below():
    assert set(CHANGES) == {field.name for field in fields(LossOptions)}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("used", [False, True])
def test_an_option_changed_later_is_that_of_a_new_criterion(name, used):
    changed, new = AverageMarginLoss(), AverageMarginLoss(**{name: CHANGES[name]})
    if used:
        step(changed)
        changed.steps = 0
    setattr(changed, name, CHANGES[name])
    assert repr(changed) == repr(new)
    for _ in range(2):
        torch.manual_seed(5)
        found = step(changed)
        torch.manual_seed(5)
        assert torch.equal(found.nan_to_num(9), step(new).nan_to_num(9))
    if name not in ("batchnorm", "aggregation", "validate", "fraction", "every", "warmup"):
        assert not torch.equal(found, step(AverageMarginLoss())), "the change does nothing here"


def test_a_schedule_of_tau_during_training():
    criterion = AverageMarginLoss(gradient=FiniteDifference())
    for tau in (3.0, 2.0, 1.0):
        criterion.tau = tau
        assert torch.equal(
            step(criterion), step(AverageMarginLoss(tau=tau, gradient=FiniteDifference()))
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tau", 0.0, "lo < hi"),
        ("mu", -1.0, "mu must be at least 0"),
        ("p", 0.5, "p must be a number >= 1"),
        ("gradient", "jvp", "gradient must be one of .* got 'jvp'"),
        ("regularizer", "lamp", "regularizer must be"),
        ("input_std", [0.0], "input_std must be"),
        ("margin", "logit_gap", "gradient=FiniteDifference"),
        ("classes", 0, "classes must be"),
    ],
)
def test_a_bad_change_is_refused_and_changes_nothing(name, value, message):
    criterion = AverageMarginLoss(gradient=FiniteDifference())
    before = repr(criterion)
    with pytest.raises(ValueError, match=message):
        setattr(criterion, name, value)
    assert repr(criterion) == before


def test_several_options_at_once():
    criterion = AverageMarginLoss(margin="logit_gap")
    options = replace(criterion.options, margin="first_order", gradient=Detached(), tau=2.0)
    criterion.options = options
    wanted = AverageMarginLoss(gradient="detached", tau=2.0)
    assert torch.equal(step(criterion), step(wanted))


@pytest.mark.parametrize("settings", [
    {"fraction": 0.5}, {"every": 2}, {"batchnorm": "running"}, {"gradient": "detached"},
    {"classes": "all"},
], ids=str)  # fmt: skip
def test_options_without_effect_on_logit_gaps_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}=.* has no effect with margin='logit_gap'"):
        AverageMarginLoss(margin="logit_gap", **settings)


@pytest.mark.parametrize(
    "settings", [{"fraction": 0.5}, {"every": 2}, {"batchnorm": "running"}], ids=str
)
def test_forward_refuses_options_of_run(settings):
    (name,) = settings
    x = X.clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"{name}=.* call criterion\.run"):
        AverageMarginLoss(**settings)(network()(x), Y, x)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"positions": "worst"}, "positions= is now aggregation"),
        ({"difference": FiniteDifference()}, "difference= is now gradient=FiniteDifference"),
        ({"secant": Secant()}, r"secant= is now margin=Secant"),
        ({"lamp": 1}, "lamp"),
    ],
)
def test_old_keywords_name_the_new_ones(keywords, message):
    with pytest.raises(TypeError, match=message):
        AverageMarginLoss(**keywords)


def test_old_words_name_the_new_ones():
    with pytest.raises(ValueError, match='"authors_code" is now called "negative_ramp"'):
        AverageMarginLoss(regularizer="authors_code")
    logits = torch.randn(3, 4)
    target = torch.tensor([0, 1, 2])
    phi = Regularizer.linear()
    for ops in (functional, reference):
        with pytest.raises(TypeError, match="positions= is now aggregation"):
            ops.average_margin_loss(logits, target, regularizer=phi, positions="mean")
    with pytest.raises(TypeError, match="critical= is now nearest"):
        functional.logit_gap(logits, target, critical=target)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamp'"):
        functional.logit_gap(logits, target, lamp=target)


def test_misspelled_options_name_the_nearest():
    with pytest.raises(TypeError, match="no option 'margine'; did you mean margin"):
        AverageMarginLoss(margine="distance")
    with pytest.raises(TypeError, match="no option 'zzzz'; known are p, mu"):
        AverageMarginLoss(zzzz=1)


def test_words_are_shorthand_for_modes():
    assert AverageMarginLoss(gradient="finite_difference").gradient == FiniteDifference()
    assert AverageMarginLoss(margin="secant").margin == Secant()
    assert isinstance(AverageMarginLoss(gradient="auto").gradient, Auto)


def test_keywords_of_the_ops_are_the_fields_of_the_settings():
    assert LossKeywords.__required_keys__ | LossKeywords.__optional_keys__ == {
        field.name for field in fields(LossSettings)
    }


def test_help_shows_every_option():
    import inspect

    shown = inspect.signature(AverageMarginLoss).parameters
    assert set(shown) == {field.name for field in fields(LossOptions)}
    assert shown["tau"].default == 3.0
    assert "reduction" in inspect.signature(functional.average_margin_loss).parameters


@pytest.fixture(scope="module")
def quadratic() -> str:
    register_regularizer("quadratic", lambda t, tau: torch.relu(tau - t) ** 2)
    return "quadratic"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["classes", "dense", "soft"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_a_regularizer_in_python_alone(quadratic, reduction, kind, with_grad):
    """The composed loss is the reference's, with both gradients."""
    torch.manual_seed(0)
    shape = (5, 4) if kind == "classes" else (5, 4, 3)
    z, grad = torch.randn(shape).double(), torch.randn(5, 7).double() if with_grad else None
    target = torch.randint(4, shape[:1] + shape[2:])
    target.view(-1)[1] = -100
    if kind == "soft":
        target = torch.softmax(torch.randn(shape), 1)
    settings = {
        "regularizer": resolve_regularizer(quadratic, 2.0),
        "weight": torch.tensor([1.0, 2.0, 0.5, 1.5]),
        "reduction": reduction,
        "label_smoothing": 0.1,
        "p": 3,
    }
    found = []
    for ops in (functional, reference):
        logits = z.clone().requires_grad_()
        g = None if grad is None else grad.clone().requires_grad_()
        out = ops.average_margin_loss(logits, target, g, **settings)
        wanted = [logits] if g is None else [logits, g]
        gradients = torch.autograd.grad(out.loss.sum(), wanted)
        found.append([*out[:4], out.statistics.values_tensor[:-1], *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_a_registered_regularizer_trains_in_every_mode(quadratic):
    exact = step(AverageMarginLoss(regularizer=quadratic))
    short = FiniteDifference("central", 0.01, "absolute")
    found = step(AverageMarginLoss(regularizer=quadratic, gradient=short))
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-3)
    with pytest.raises(ValueError, match="there is a regularizer 'quadratic' already"):
        register_regularizer("quadratic", lambda t, tau: t)


@dataclass(frozen=True)
class Weakened(GradientMode):
    """A toy mode: the norm's part of the exact gradient times a factor."""

    factor: float = 0.5

    def __call__(self, step):
        nearest = step.nearest()
        grad = step.input_gradient(nearest, create_graph=True)
        return step.loss(grad.detach().lerp(grad, self.factor), nearest)

    def explain(self, measured):
        return "approximates", f"It keeps {self.factor:g} of the norm's part."


@pytest.fixture(scope="module")
def weakened() -> str:
    register_gradient_mode("weakened", Weakened)
    return "weakened"


def test_a_gradient_mode_in_one_file(weakened):
    exact, constant = step(AverageMarginLoss()), step(AverageMarginLoss(gradient="detached"))
    found = step(AverageMarginLoss(gradient=weakened))
    torch.testing.assert_close(found, (exact + constant) / 2)
    assert torch.equal(step(AverageMarginLoss(gradient=Weakened(1.0))), exact)
    criterion = AverageMarginLoss(gradient=weakened, regularizer="softplus")
    report = criterion.check(network().double(), X.double(), Y)
    assert report.verdict == "approximates"
    assert "keeps 0.5 of the norm's part" in str(report)
    with pytest.raises(ValueError, match="there is a 'weakened' already"):
        register_gradient_mode("weakened", Weakened)
