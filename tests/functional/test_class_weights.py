"""Class weights of any sign, as torch's cross_entropy takes them; smoothing over many classes."""

from __future__ import annotations

import math

import accuracy
import pytest
import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss
from margin_ext.regularizers import Regularizer

WEIGHTS = {
    "negative sum": [-1.0, 0.2, 0.3],
    "all negative": [-1.0, -0.5, -0.25],
    "one is zero": [0.0, 2.0, 1.0],
    "all zero": [0.0, 0.0, 0.0],
    "sum of zero": [1.0, -1.0, 0.0],
}
PLAIN = Regularizer.ramp(0, 1)


def classes() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def dense() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, -100]])


def soft() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3), torch.softmax(torch.randn(8, 3), 1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", [classes, dense, soft], ids=lambda k: k.__name__)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_without_a_regularizer_it_is_cross_entropy(
    backend, dtype, name, kind, reduction, label_smoothing
):
    """Value and gradient, NaN and infinities where torch has them."""
    z, y = kind()
    if name == "sum of zero":  # as often class 0 as class 1
        y = torch.tensor([0, 1, 0, 1, 2, 2, 0, 1]) if kind is classes else y
    logits = backend.place(z.to(dtype)).requires_grad_()
    target, weight = backend.place(y), backend.place(torch.tensor(WEIGHTS[name]))
    settings = {"reduction": reduction, "label_smoothing": label_smoothing}
    target = target.to(dtype) if target.is_floating_point() else target
    found = backend.ops.average_margin_loss(
        logits, target, regularizer=PLAIN, mu=0.0, weight=weight, **settings
    ).loss
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = logits.detach().to(wide).requires_grad_()
    wanted = nn.functional.cross_entropy(
        theirs,
        target.to(wide) if target.is_floating_point() else target,
        weight.to(wide),
        **settings,
    )
    close = {"rtol": 3e-6, "atol": 3e-6, "equal_nan": True}
    torch.testing.assert_close(found, wanted, **close)
    ours, right = (
        torch.autograd.grad(value.sum(), by)[0].to(wide)
        for value, by in ((found, logits), (wanted, theirs))
    )
    if bool(right.isfinite().all()):
        rounding = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours, right, rtol=rounding, atol=rounding)
    else:
        assert not bool(ours.isfinite().all()), "no gradient where torch has no finite one"


@pytest.mark.parametrize("p", [1, 2, math.inf, 3])
def test_a_negative_sum_trains(backend, p):
    """The gradients of both inputs are those of float64 autograd."""
    z, y = classes()
    grad = torch.randn(8, 5)
    weight = torch.tensor([-1.0, 0.2, 0.3], dtype=torch.float64)
    inputs = [backend.place(t.double()).requires_grad_() for t in (z, grad)]
    out = backend.ops.average_margin_loss(
        inputs[0],
        backend.place(y),
        inputs[1],
        p=p,
        regularizer=Regularizer.softplus(1),
        weight=backend.place(weight),
    )
    found = torch.autograd.grad(out.loss, inputs)
    each = backend.ops.average_margin_loss(
        *(inputs[0], backend.place(y), inputs[1]),
        p=p,
        regularizer=Regularizer.softplus(1),
        weight=backend.place(weight),
        reduction="sum",
    )
    right = torch.autograd.grad(each.loss / weight[y].sum().item(), inputs)
    for ours, theirs in zip(found, right, strict=True):
        assert bool(ours.any())
        torch.testing.assert_close(ours, theirs)


def test_the_gap_of_positions_whose_weights_are_negative_is_their_weighted_mean(backend):
    from margin_ext import functional, reference

    z, y = torch.randn(1, 2, 2).double(), torch.tensor([[0, 1]])
    weight = torch.tensor([-1.0, -3.0]).double()
    for ops in (functional, reference):
        found = ops.sample_gap(z, y, weight=weight)
        torch.testing.assert_close(found.fraction, torch.tensor([[0.25, 0.75]]).double())


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(backend, weight):
    weights = torch.tensor([1.0, weight, 1.0])
    with pytest.raises(
        ValueError, match=rf"class weights must be finite, got {weight} for class 1"
    ):
        AverageMarginLoss(weight=weights)
    criterion = AverageMarginLoss()
    with pytest.raises(ValueError, match="class weights must be finite"):
        criterion.options = type(criterion.options)(weight=weights)
    if backend.device == "cpu":
        z, y = classes()
        with pytest.raises(ValueError, match="class weights must be finite"):
            backend.ops.average_margin_loss(z, y, regularizer=PLAIN, weight=weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [33, 1000, 10_007, 100_000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_smoothing_over_many_classes_is_as_accurate_as_torchs(backend, dtype, count, weighted):
    """Error at most twice that of torch in the same types, both against float64."""
    z = (torch.randn(3, count) * 3).to(dtype)
    y = torch.tensor([0, count // 2, count - 1])
    weight = torch.rand(count) + 0.5 if weighted else None
    logits = backend.place(z).requires_grad_()
    placed = None if weight is None else backend.place(weight)
    out = backend.ops.average_margin_loss(
        logits,
        backend.place(y),
        regularizer=PLAIN,
        mu=0.0,
        weight=placed,
        label_smoothing=0.9,
        reduction="none",
    )
    ours = [out.loss, *torch.autograd.grad(out.loss.sum(), logits)]

    def plain(wide: torch.dtype) -> list[Tensor]:
        theirs = z.to(wide).requires_grad_()
        loss = nn.functional.cross_entropy(
            theirs,
            y,
            None if weight is None else weight.to(wide),
            label_smoothing=0.9,
            reduction="none",
        )
        return [loss.detach(), torch.autograd.grad(loss.sum(), theirs)[0]]

    accuracy.assert_as_accurate(
        ["loss", "grad_logits"],
        [t.detach().cpu() for t in ours],
        [plain(torch.float32)[0], plain(torch.float32)[1].to(dtype)],
        plain(torch.float64),
    )
