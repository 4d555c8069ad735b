"""The gap of a soft label: closed forms, ties, masked classes, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, one_hot

from margin_ext import reference
from margin_ext.functional.soft_gap import soft_gap_cotangent

INF = math.inf


def by_definition(z: torch.Tensor, q: torch.Tensor) -> list[float]:
    """sum_c q_c (z_c - max_{k != c} z_k), class by class."""
    found = []
    for row, label in zip(z.tolist(), q.tolist(), strict=True):
        others = [max(row[:c] + row[c + 1 :]) for c in range(len(row))]
        parts = zip(label, row, others, strict=True)
        found.append(sum(share * (own - other) for share, own, other in parts if share))
    return found


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_is_the_expectation_of_the_hard_gap(classes):
    z = torch.randn(50, classes, dtype=torch.float64)
    q = torch.softmax(3 * torch.randn(50, classes, dtype=torch.float64), 1)
    q[0] = 1 / classes
    gap = reference.soft_gap(z, q).gap
    assert gap.tolist() == pytest.approx(by_definition(z, q), rel=1e-12, abs=1e-12)
    labels = torch.arange(classes).expand(50, -1)
    hard = [reference.logit_gap(z, labels[:, c].contiguous()).gap for c in range(classes)]
    torch.testing.assert_close(gap, (q * torch.stack(hard, 1)).sum(1))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_only_more_than_half_a_label_makes_it_positive(classes):
    z = torch.randn(500, classes, dtype=torch.float64)
    q = torch.softmax(3 * torch.randn(500, classes, dtype=torch.float64), 1)
    gap, nearest = reference.soft_gap(z, q)
    largest, second = z.gather(1, nearest).unbind(1)
    share = q.gather(1, nearest[:, :1]).squeeze(1)
    assert bool((gap <= (2 * share - 1) * (largest - second) + 1e-12).all())
    assert bool((gap > 0).any())


def test_mixtures_have_fewer_positive_gaps():
    """What docs/labels.md states: the ramp pushes only samples whose gap is positive."""
    classes, noise = 10, 1.5
    means = torch.randn(classes, 20)

    def mixtures(batch: int) -> tuple[torch.Tensor, ...]:
        """Samples and labels, and both mixed in pairs."""
        y = torch.randint(classes, (batch,))
        x, share = means[y] + noise * torch.randn(batch, 20), torch.rand(batch, 1)
        hot = one_hot(y, classes)
        mixed = [share * part + (1 - share) * part.flip(0) for part in (x, hot)]
        return x, y, *mixed

    def positive(logits: torch.Tensor, label: torch.Tensor) -> float:
        return float((reference.logit_gap(logits, label).gap > 0).double().mean())

    _, y, _, q = mixtures(50_000)
    z = torch.randn(50_000, classes)
    assert positive(z, y) == pytest.approx(0.1, abs=0.01)
    assert positive(z, q) == pytest.approx(0.055, abs=0.01)

    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, classes))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(100):
        _, _, x, q = mixtures(256)
        optimizer.zero_grad()
        cross_entropy(model(x), q).backward()
        optimizer.step()
    x, y, mixed, q = mixtures(10_000)
    with torch.no_grad():
        assert positive(model(x), y) == pytest.approx(0.84, abs=0.08)
        assert positive(model(mixed), q) == pytest.approx(0.63, abs=0.08)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_one_hot_label_has_the_hard_gap(dtype):
    z = torch.randn(200, 6).to(dtype)
    y = torch.randint(6, (200,))
    soft = reference.soft_gap(z, one_hot(y, 6).to(dtype))
    hard = reference.logit_gap(z, y)
    assert torch.equal(soft.gap, hard.gap)
    assert torch.equal(reference.logit_gap(z, one_hot(y, 6).to(dtype)).runner_up, hard.runner_up)


@pytest.mark.parametrize(
    ("logits", "label", "gap", "nearest"),
    [
        ([1.0, 1.0, 1.0], [0.2, 0.3, 0.5], 0.0, [0, 1]),  # ties: the lowest classes
        ([0.0, 2.0, 2.0], [1.0, 0.0, 0.0], -2.0, [1, 2]),
        ([3.0, 1.0, 0.0], [0.5, 0.5, 0.0], 0.0, [0, 1]),  # +2 and -2
        ([3.0, 1.0, 0.0], [0.75, 0.0, 0.25], 0.75, [0, 1]),  # 0.75 * 2 - 0.25 * 3
        ([3.0, 1.0, -INF], [0.5, 0.5, 0.0], 0.0, [0, 1]),  # a masked class without a share
        ([3.0, -INF, -INF], [1.0, 0.0, 0.0], INF, [0, 1]),
        ([3.0, 1.0, -INF], [0.5, 0.0, 0.5], -INF, [0, 1]),
        ([0.0, math.nan, 1.0], [0.5, 0.5, 0.0], math.nan, [1, 2]),
    ],
)
def test_one_row(logits, label, gap, nearest):
    found = reference.soft_gap(torch.tensor([logits]), torch.tensor([label]))
    torch.testing.assert_close(found.gap, torch.tensor([gap]), equal_nan=True)
    assert found.nearest.tolist() == [nearest]


def test_its_gradient_is_the_seed():
    z = torch.randn(20, 5, dtype=torch.float64).requires_grad_()
    q = torch.softmax(torch.randn(20, 5, dtype=torch.float64), 1)
    q[:5] = one_hot(torch.arange(5), 5)
    found = reference.soft_gap(z, q)
    (grad,) = torch.autograd.grad(found.gap.sum(), z)
    torch.testing.assert_close(soft_gap_cotangent(q, found.nearest), grad)
    torch.testing.assert_close(grad.sum(1), torch.zeros(20, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.9, 0.6, 0.5, 0.2])
def test_a_mixture_of_the_two_largest_is_measured_to_the_boundary_between_them(share):
    weight = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(30, 6, dtype=torch.float64)
    z = linear(x, weight)
    order = z.argsort(1, descending=True)
    q = torch.zeros_like(z).scatter(
        1, order, torch.tensor([[share, 1 - share]], dtype=torch.float64).expand(30, 2)
    )
    found = reference.soft_gap(z, q)
    grad = soft_gap_cotangent(q, found.nearest) @ weight
    margin = reference.first_order_margin(found.gap, grad).margin
    hard = reference.linear_margin(weight, None, x, order[:, 0])
    sign = (share > 0.5) - (share < 0.5)
    torch.testing.assert_close(margin, sign * hard, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [1, 2, "inf", 3])
def test_on_a_linear_model_the_margin_is_the_distance(p):
    """A step of it along the dual direction ends where the expected gap to the classes is 0."""
    weight = torch.randn(4, 6, dtype=torch.float64)
    x = torch.randn(30, 6, dtype=torch.float64)
    q = torch.softmax(torch.randn(30, 4, dtype=torch.float64), 1)
    found = reference.soft_gap(linear(x, weight), q)
    grad = soft_gap_cotangent(q, found.nearest) @ weight
    margin = reference.first_order_margin(found.gap, grad, p=p).margin
    moved = reference.dual_direction(grad, -margin, p=p, base=x)
    order = {"inf": math.inf}.get(p, p)
    torch.testing.assert_close(torch.linalg.vector_norm(moved - x, order, dim=1), margin.abs())
    there = reference.soft_gap(linear(moved, weight), q, nearest=found.nearest).gap
    torch.testing.assert_close(there, torch.zeros_like(there), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0.5, 0.6, 0.0], "1 in sum .* got the sum 1.1 and the smallest 0 at index 1"),
        ([1.5, -0.5, 0.0], r"the smallest -0.5 at index 1"),
        ([math.nan, 0.5, 0.5], r"got the sum nan .* at index 1"),
    ],
)
def test_what_is_no_distribution_is_refused(label, message):
    target = torch.tensor([[1.0, 0.0, 0.0], label])
    with pytest.raises(ValueError, match=message):
        reference.soft_gap(torch.randn(2, 3), target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_distributions_are_taken(dtype):
    q = torch.softmax(torch.randn(20, 1000), 1).to(dtype)
    assert reference.soft_gap(torch.randn(20, 1000), q).gap.isfinite().all()
