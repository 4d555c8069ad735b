"""All classes by sketches: never another answer than class by class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measurement.networks import relu_network
from torch import Tensor, nn

from margin_ext.bounds import AllClasses
from margin_ext.bounds.class_search import ClassSearch
from margin_ext.bounds.first_order import FirstOrderMargins, FirstOrderOptions, first_order_margins
from margin_ext.bounds.margin_sketch import MarginSketch
from margin_ext.bounds.norm_sketch import NormSketch, has_sketch
from margin_ext.threat import ThreatModel

NORMS = (2.0, math.inf, 3.0)


def searched(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None,
    norms: tuple[float, ...] = (2.0,),
    std: float | None = None,
    norm_bound: list[float] | None = None,
    **options: Any,
) -> tuple[FirstOrderMargins, FirstOrderMargins, MarginSketch]:
    """By sketch and class by class."""
    threats = [ThreatModel(p=p, input_std=std) for p in norms]
    sketch = MarginSketch(AllClasses(search="sketch", **options), threats)
    found = first_order_margins(
        model, x, y, FirstOrderOptions(threats, sketch=sketch, norm_bound=norm_bound)
    )
    return found, first_order_margins(model, x, y, FirstOrderOptions(threats)), sketch


def require_same(found: FirstOrderMargins, every: FirstOrderMargins) -> None:
    assert torch.equal(found.nearest_class, every.nearest_class)
    assert torch.equal(found.nearest_rank, every.nearest_rank)
    for name in ("margin", "norm", "gap", "logits"):
        torch.testing.assert_close(getattr(found, name), getattr(every, name))


def data(count: int, dims: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labels", ["predicted", "random"])
def test_random_networks(seed: int, labels: str) -> None:
    model = relu_network((30, 40, 120), seed)
    x, y = data(20, 30, 120, seed)
    given = y if labels == "random" else model(x).argmax(dim=1)
    found, every, _ = searched(model, x, given, NORMS)
    require_same(found, every)
    assert found.directions == 3 * 48
    assert every.directions == 0
    assert bool((every.gradients == 119).all())
    if labels == "predicted":
        assert float(found.gradients.double().mean()) < 119


@pytest.mark.parametrize("derivatives", ["forward_mode", "differences"])
def test_few_gradients_are_needed_for_p_2(derivatives: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 64), nn.GELU(), nn.Linear(64, 1000))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(100, 50)
    y = model(x).argmax(dim=1)
    y[:10] = 3
    found, every, sketch = searched(model, x, y, directions=96, derivatives=derivatives)
    require_same(found, every)
    assert sketch.why_not is None
    assert found.by_differences == (derivatives == "differences")
    assert float(found.gradients[10:].double().mean()) < 30


def head(weight: Tensor, bias: Tensor) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(bias)
    return model


def adversarial(kind: str) -> tuple[nn.Linear, Tensor, Tensor]:
    classes, dims = 60, 25
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(classes, dims, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    x = torch.randn(8, dims, generator=generator, dtype=torch.float64)
    if kind == "two equal classes":
        weight[7], bias[7] = weight[3], bias[3]
    elif kind == "all classes equal":
        weight[:] = weight[0]
    elif kind == "tied logits":
        x[:], bias[:] = 0.0, 1.0
    elif kind == "one dominating class":
        weight[9] *= 1e4
    elif kind == "a common part":
        weight += 1e5 * torch.randn(dims, generator=generator, dtype=torch.float64)
    elif kind == "a class far away with a steep gradient":
        weight[11] *= 1e3
        bias[11] = -1e3
    elif kind == "tiny gradients":
        weight *= 1e-30
    elif kind == "some without gradient":
        weight[20:] = weight[2]
    elif kind == "one input that counts":
        weight[:, 1:] = 0.0
    model = head(weight, bias)
    y = model(x).argmax(dim=1)
    y[4:] = torch.tensor([1, 7, 3, 59])
    return model, x, y


@pytest.mark.parametrize(
    "kind",
    [
        "two equal classes", "all classes equal", "tied logits", "one dominating class",
        "a common part", "a class far away with a steep gradient", "tiny gradients",
        "some without gradient", "one input that counts",
    ],
)  # fmt: skip
@pytest.mark.parametrize("norms", [(2.0,), (math.inf,), NORMS])
def test_adversarial_cases(kind: str, norms: tuple[float, ...]) -> None:
    model, x, y = adversarial(kind)
    found, every, _ = searched(model, x, y, norms)
    require_same(found, every)


def test_units_and_norm_bounds() -> None:
    model = relu_network((30, 40, 120))
    x, _ = data(10, 30, 120)
    found, every, _ = searched(model, x, None, NORMS, std=0.3, norm_bound=[1e6] * 3)
    require_same(found, every)
    bound = float(every.norm.max()) * 20
    found, every, _ = searched(model, x, None, (2.0,), norm_bound=[bound])
    require_same(found, every)
    with pytest.raises(ValueError, match="norm_bound"):
        searched(model, x, None, (2.0,), norm_bound=[1e-6])


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_the_nearest_few(norm: float) -> None:
    model, threats = relu_network((30, 40, 120)), [ThreatModel(p=norm)]
    x, y = data(12, 30, 120)
    found, every = (ClassSearch(model, x, y, threats, count=5) for _ in range(2))
    assert found.by_sketch(MarginSketch(AllClasses(search="sketch"), threats))
    every.in_order(None)
    assert torch.equal(found.nearest.rank, every.nearest.rank)
    assert bool((every.nearest.margin.diff(dim=2) >= 0).all())
    few = ClassSearch(relu_network((30, 3)), x, y % 3, threats, count=5)
    few.in_order(None)
    assert few.nearest.rank.shape == (1, 12, 2)


def test_samples_in_groups_are_those_of_one() -> None:
    model = relu_network((30, 40, 120))
    x, _ = data(10, 30, 120)
    threat = [ThreatModel(p=2)]
    whole, _, _ = searched(model, x, None)
    sketch = MarginSketch(AllClasses(search="sketch"), threat)
    sketch.fit = lambda *_: 3
    grouped = first_order_margins(model, x, None, FirstOrderOptions(threat, sketch=sketch))
    require_same(grouped, whole)
    assert torch.equal(grouped.gradients, whole.gradients)


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream * (x > 0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


class _SilentlyZero(torch.autograd.Function):
    """Its forward mode forgets the input, as that of some libraries' ops."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return 2 * upstream

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 0 * tangent


class Through(nn.Module):
    """A network with a function in the middle, around which half of the signal goes."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.body = relu_network((30, 40, 40))
        self.head = relu_network((40, 120), 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(self.function(hidden) + hidden)  # type: ignore[no-any-return]


def test_layers_without_a_forward_mode_take_differences() -> None:
    x, _ = data(10, 30, 120)
    found, every, sketch = searched(Through(_NoForwardMode.apply), x, None)
    require_same(found, every)
    assert found.by_differences
    assert "finite differences, because forward-mode" in str(sketch.told)


@pytest.mark.parametrize(
    ("norms", "options", "reason"),
    [
        ((2.0, math.inf), {}, "only p = 2 has a sketch"),
        ((2.0,), {"derivatives": "forward_mode"}, "forward-mode differentiation fails"),
        ((1.0, 2.0), {}, "no sketch for l1"),
        ((1.5,), {}, "no sketch for l1.5"),
    ],
)
def test_what_has_no_sketch_goes_class_by_class(
    norms: tuple[float, ...], options: dict[str, Any], reason: str
) -> None:
    x, _ = data(4, 30, 120)
    found, every, sketch = searched(Through(_NoForwardMode.apply), x, None, norms, **options)
    require_same(found, every)
    assert found.directions == 0
    assert reason in str(sketch.told)


@pytest.mark.parametrize("function", [_StraightThrough, _SilentlyZero])
def test_gradients_that_contradict_the_derivatives_are_noticed(function: Any) -> None:
    x, _ = data(4, 30, 120)
    found, every, sketch = searched(Through(function.apply), x, None)
    require_same(found, every)
    assert found.directions == 0
    assert "its gradients are not the derivatives" in str(sketch.told)


def test_half_precision_goes_class_by_class() -> None:
    model = nn.Linear(20, 40).bfloat16()
    found, every, sketch = searched(model, torch.randn(3, 20).bfloat16(), None)
    require_same(found, every)
    assert "float32 or float64" in str(sketch.told)


def test_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 120))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found, every, sketch = searched(model, torch.randn(5, 4, 16), None)
    require_same(found, every)
    assert sketch.told is None
    assert not found.by_differences


def test_convolutions_and_normalisation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6),
        nn.SiLU(), nn.Flatten(), nn.Linear(54, 100), nn.LayerNorm(100),
    ).eval()  # fmt: skip
    found, every, sketch = searched(model, torch.randn(6, 1, 14, 14), None, (2.0, math.inf))
    require_same(found, every)
    assert sketch.told is None


def test_a_backward_pass_that_cannot_be_batched() -> None:
    x, _ = data(2, 30, 120)
    batched = first_order_margins(
        relu_network((30, 40, 120)), x, None, FirstOrderOptions([ThreatModel(p=2)])
    )
    model = relu_network((30, 40, 120))
    alone = [
        first_order_margins(model, x[i : i + 1], None, FirstOrderOptions([ThreatModel(p=2)])).margin
        for i in range(2)
    ]
    torch.testing.assert_close(batched.margin, torch.cat(alone, dim=1))
    unbatched = Through(_NoForwardMode.apply)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = first_order_margins(unbatched, x, None, FirstOrderOptions([ThreatModel(p=2)]))
    whole = Through(torch.relu)
    expected = first_order_margins(whole, x, None, FirstOrderOptions([ThreatModel(p=2)]))
    torch.testing.assert_close(found.margin, expected.margin)


@pytest.mark.parametrize("q", [1.0, 1.2, 1.5, 1.9, 2.0])
@pytest.mark.parametrize("count", [9, 48])
def test_intervals_fail_as_often_as_they_may(q: float, count: int) -> None:
    """2 % is asked for, of 4000 gradients; the standard deviation is .22 %."""
    sketch, failure = NormSketch(q), 0.02
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(5, generator=generator, dtype=torch.float64) ** 3
    norm = float(torch.linalg.vector_norm(grad, q))
    drawn = torch.stack([sketch.draw(5 * 4000, generator) for _ in range(count)])
    products = (drawn.reshape(count, 4000, 5) * grad).sum(dim=2)
    found = sketch.interval(products, torch.zeros(count, 1, dtype=torch.float64), failure)
    # What is told exactly for q = 2; an order statistic can only be as exact as its steps.
    for share in ((found.upper < norm), (found.lower > norm)):
        assert 0.012 < float(share.double().mean()) < 0.029


def test_sketches_exist_for_exponents_from_1_to_2() -> None:
    assert [has_sketch(q) for q in (1.0, 1.5, 2.0, 3.0, math.inf)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "fast"}, "search must be from"),
        ({"derivatives": "exact"}, "derivatives must be from"),
        ({"failure": 0.0}, "failure must lie between"),
        ({"failure": 0.7}, "failure must lie between"),
        ({"directions": 2}, "directions must be"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllClasses(**options)
