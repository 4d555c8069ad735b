"""The first-order margin, and that it is the exact distance for linear classifiers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import NORMS

from margin_ext import reference


def linear_classifier(classes: int = 4, size: int = 5, batch: int = 6):
    weight = torch.randn(classes, size, dtype=torch.float64)
    bias = torch.randn(classes, dtype=torch.float64)
    inputs = torch.randn(batch, size, dtype=torch.float64)
    target = torch.randint(classes, (batch,))
    return weight, bias, inputs, target


def first_order_margins_to_all(weight, bias, inputs, target, p):
    """min over k of the first-order margin to class k, through autograd."""
    x = inputs.clone().requires_grad_()
    logits = torch.nn.functional.linear(x, weight, bias)
    margins = []
    for k in range(weight.shape[0]):
        nearest = torch.where(target == k, (k + 1) % weight.shape[0], k)
        gap = reference.logit_gap(logits, target, nearest=nearest).gap
        (grad,) = torch.autograd.grad(gap.sum(), x, retain_graph=True)
        margins.append(reference.first_order_margin(gap.detach(), grad, p=p).margin)
    return torch.stack(margins).amin(dim=0)


@pytest.mark.parametrize("p", NORMS)
def test_equals_the_linear_margin(p):
    problem = linear_classifier()
    torch.testing.assert_close(
        first_order_margins_to_all(*problem, p), reference.linear_margin(*problem, p=p)
    )


def distance_to_hyperplane(normal: np.ndarray, offset: float, p: float) -> float:
    """min ||d||_p with normal . d = offset, as d moves on that hyperplane: by minimisation."""
    # Damped Newton on sum |d|^p over the null space of the constraint; p in (1, inf) is smooth.
    d = normal * offset / (normal @ normal)
    basis = np.linalg.svd(normal[None])[2][1:].T
    scale = np.abs(d).max()
    for _ in range(200):
        magnitude = np.maximum(np.abs(d) / scale, 1e-9)
        slope = basis.T @ (np.sign(d) * magnitude ** (p - 1))
        curvature = basis.T @ ((p - 1) * magnitude[:, None] ** (p - 2) * basis)
        step = basis @ np.linalg.solve(curvature, slope) * scale
        length = 1.0
        while np.linalg.norm(d - length * step, p) > np.linalg.norm(d, p) and length > 1e-9:
            length /= 2
        d = d - length * step
    assert abs(normal @ d - offset) < 1e-9
    return float(np.linalg.norm(d, p))


@pytest.mark.parametrize("p", [1.5, 2, 3, 4])
def test_linear_margin_is_the_nearest_point_found_by_optimisation(p):
    weight, bias, inputs, target = linear_classifier(batch=3)
    for x, y, margin in zip(
        inputs, target, reference.linear_margin(weight, bias, inputs, target, p=p), strict=True
    ):
        logits = weight @ x + bias
        signed = []
        for k in range(len(weight)):
            if k != y:
                gap = float(logits[y] - logits[k])
                normal = (weight[y] - weight[k]).numpy()
                signed.append(math.copysign(distance_to_hyperplane(normal, -gap, p), gap))
        assert float(margin) == pytest.approx(min(signed), rel=1e-6)


@pytest.mark.parametrize(
    ("p", "expected"), [(1, 2.0), (2, 10 / math.sqrt(50)), (math.inf, 10 / 12)]
)
def test_distance_by_hand(p, expected):
    """Two classes, w = (3, -5, 4), gap 10 and -10: distance |gap| over max, root or sum of |w|."""
    weight = torch.tensor([[3.0, -5.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    inputs = torch.tensor([[2.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    margins = reference.linear_margin(weight, None, inputs, torch.tensor([0, 1]), p=p)
    assert margins.tolist() == pytest.approx([expected, -expected])


def test_the_signed_step_reaches_the_boundary():
    """x - margin * v(grad) has gap 0: what attacks and finite differences rely on."""
    weight, bias, x, target = linear_classifier(classes=2)
    gap_normal = weight[target] - weight[1 - target]
    for p in NORMS:
        margin = reference.linear_margin(weight, bias, x, target, p=p)
        moved = reference.dual_direction(gap_normal, -margin, p=p, base=x)
        logits = torch.nn.functional.linear(moved, weight, bias)
        torch.testing.assert_close(logits[:, 0], logits[:, 1])


def test_under_eps_the_norm_is_constant():
    gap = torch.tensor([2.0, 2.0, 2.0], requires_grad=True)
    grad = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [3.0, 4.0]], requires_grad=True)
    margin, norm = reference.first_order_margin(gap, grad, p=2, eps=0.5)
    assert margin.tolist() == pytest.approx([4.0, 4.0, 0.4])
    assert norm.tolist() == pytest.approx([0.0, 1e-3, 5.0])
    margin.sum().backward()
    assert gap.grad.tolist() == pytest.approx([2.0, 2.0, 0.2])
    assert grad.grad[:2].tolist() == [[0, 0], [0, 0]]
    assert grad.grad[2].tolist() == pytest.approx([-0.08 * 0.6, -0.08 * 0.8])
