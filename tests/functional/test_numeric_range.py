"""Norms, directions and gradients whose true values are finite, though squares or quotients on the
way to them are not: over the whole range of every type.
"""

from __future__ import annotations

import math

import plain_torch
import pytest
import torch
from backends import Backend
from problems import NORMS, REGULARIZERS, Problem, random_problem
from torch import Tensor

from margin_ext import reference
from margin_ext.regularizers import Regularizer

# Of the gradient's elements. Squares of float32 leave its range from 1.8e19 on and below 1e-19,
# of float64 from 1.3e154 on and below 1e-154; the first and last of each type are its own ends.
SCALES = {
    torch.float16: [6e-8, 1e-6, 2e4],
    torch.bfloat16: [1e-38, 1e-30, 1e-15, 1e15, 1e30, 1e37],
    torch.float32: [2e-44, 1e-38, 1e-30, 1e-18, 1e-15, 1e14, 1e18, 1e20, 1e30, 1e37],
    torch.float64: [1e-322, 1e-300, 1e-160, 1e-30, 1e30, 1e160, 1e300],
}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]


@pytest.fixture
def backend(backend_or_emulator: Backend) -> Backend:
    return backend_or_emulator


def sizes(p: float) -> tuple[int, ...]:
    """One element; tails of vectors; for p = 2, whose rows may be read twice, two chunks."""
    return (1, 9, 67, 32_800) if p == 2 else (1, 9, 67)


def rows(dtype: torch.dtype, scale: float, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    normal = torch.randn(3, size, generator=generator, dtype=torch.float64)
    grad = (normal.clamp(-2, 2) * scale).to(dtype)
    grad[2, 1::2] = 0
    grad[:, 0] = scale  # no row is zero
    return grad


def true_norm(grad: Tensor, p: float) -> Tensor:
    """In float64, of rows that were brought to 1."""
    largest = grad.abs().amax(1, keepdim=True).double()
    unit = torch.linalg.vector_norm(grad.double() / largest, plain_torch.dual_exponent(p), dim=1)
    return unit * largest.squeeze(1)


def true_direction(grad: Tensor, p: float) -> Tensor:
    x = (grad.double() / grad.abs().amax(1, keepdim=True).double()).requires_grad_()
    norm = torch.linalg.vector_norm(x, plain_torch.dual_exponent(p), dim=1)
    return torch.autograd.grad(norm.sum(), x)[0]


def tolerance(dtype: torch.dtype, p: float) -> float:
    # Powers of float32 numbers are less exact; and torch's norm of 32,800 is off by 2e-5.
    return (4e-5 if p in (1, 2, math.inf) else 1e-4) if dtype != torch.float64 else 1e-11


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(("dtype", "scale"), CASES, ids=str)
@pytest.mark.usefixtures("two_threads")
def test_norms(backend, dtype, scale, p):
    for size in sizes(p):
        grad = rows(dtype, scale, size)
        expected = true_norm(grad, p)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        gap = torch.ones(3, dtype=wide)
        found = backend.ops.first_order_margin(backend.place(gap), backend.place(grad), p=p)
        norm = found.norm.cpu().double()
        info = torch.finfo(wide)
        inside = expected < info.max
        # Subnormal norms are whole multiples of the smallest number.
        allowed = tolerance(dtype, p) * expected + info.smallest_normal * info.eps
        assert bool(((norm - expected).abs() <= allowed)[inside].all()), (size, norm, expected)
        assert bool(norm[~inside].isinf().all())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(("dtype", "scale"), CASES, ids=str)
@pytest.mark.usefixtures("two_threads")
def test_directions(backend, dtype, scale, p):
    """Of unit length, with any factor, from a row's magnitude that no number need hold squared."""
    for size in sizes(p):
        grad = rows(dtype, scale, size)
        expected = true_direction(grad, p)
        found = backend.ops.dual_direction(backend.place(grad), p=p).cpu().double()
        rounding = torch.finfo(dtype).eps + tolerance(dtype, p)
        subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert bool(((found - expected).abs() <= rounding * expected.abs() + rounding * 1e-3).all())
        if dtype == torch.float16:
            continue
        for factor in (1e-30, 1e30):
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            factors = torch.full((3,), factor, dtype=wide)
            step = backend.ops.dual_direction(
                backend.place(grad), backend.place(factors), p=p
            ).cpu()
            error = (step.double() - factor * expected).abs()
            allowed = rounding * factor * (expected.abs() + 1e-3) + subnormal
            assert bool((error <= allowed).all()), (size, factor)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("scale", "std"), [(1e30, 1e-6), (1e-30, 1e6), (1e25, 1e20), (1e-25, 1e-20), (1e-36, 1e8)]
)
def test_norms_and_directions_in_pixel_units(backend, scale, std, p):
    """The factor of a channel may be what brings a row out of the range, or back into it."""
    grad = rows(torch.float32, scale, 12).reshape(3, 2, 6)
    stds = torch.tensor([std, 3 * std])
    exact = (grad.double() / stds.double()[:, None]).reshape(3, 12)
    expected = true_norm(exact, p)
    place = backend.place
    norm = backend.ops.first_order_margin(
        place(torch.ones(3)), place(grad), p=p, input_std=place(stds)
    ).norm.cpu()
    finite = expected < torch.finfo(torch.float32).max
    torch.testing.assert_close(norm[finite].double(), expected[finite], rtol=2e-4, atol=1e-44)
    if bool(finite.all()) and bool((expected > 1e-36).all()):
        step = backend.ops.dual_direction(place(grad), p=p, input_std=place(stds)).cpu()
        wanted = (true_direction(exact, p).reshape(3, 2, 6) / stds.double()[:, None]).float()
        torch.testing.assert_close(step, wanted, rtol=2e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("dtype", "scale", "eps"),
    [
        (torch.float32, 1e14, 1e-6),
        (torch.float32, 1e-15, 1e-30),
        (torch.float32, 1e-18, 1e-30),
        (torch.bfloat16, 1e14, 1e-6),
        (torch.bfloat16, 1e-15, 1e-30),
        (torch.float16, 1e-4, 1e-6),
        (torch.float64, 1e140, 1e-6),
        (torch.float64, 1e-140, 1e-300),
    ],
    ids=str,
)
def test_gradients_of_the_loss(backend, dtype, scale, eps, p):
    """dL/dg = a / ||g||^2 v is within the range of the type, c / ||g|| on the way to it is not."""
    problem = random_problem(3, 4, (9,), torch.float64)
    grad = (problem.grad * scale).to(dtype)
    logits = problem.logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
    ours = Problem(logits, problem.target, grad).to(backend.device).requires_grad_()
    out = backend.ops.average_margin_loss(
        *(ours.logits, ours.target, ours.grad), p=p, eps=eps, regularizer=Regularizer.linear()
    )
    found = torch.autograd.grad(out.loss, ours.grad)[0].cpu().double()
    # In units of the scale.
    unit = (grad.double() / scale).requires_grad_()
    gaps = plain_torch.gap(logits.double(), problem.target)
    margin, _ = plain_torch.margin(gaps, unit, p)
    (slope,) = torch.autograd.grad(-margin.mean(), unit)
    info = torch.finfo(dtype)
    expected = slope / scale / scale
    kept = (expected.abs() < info.max) | (expected == 0)
    allowed = 8 * info.eps * expected.abs().amax(1, keepdim=True)
    allowed = allowed + 1e-5 * expected.abs() + 2 * info.smallest_normal * info.eps
    assert bool(((found - expected).abs() <= allowed)[kept].all())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", ["zeros", "one_infinity", "all_infinite", "nan"])
def test_rows_that_a_second_pass_cannot_help(backend, kind, p):
    grad = torch.zeros(2, 40)
    if kind == "one_infinity":
        grad[:, 7] = -math.inf
    elif kind == "all_infinite":
        grad[:] = math.inf
    elif kind == "nan":
        grad[:, 3] = math.nan
    norm = backend.ops.first_order_margin(
        backend.place(torch.ones(2)), backend.place(grad), p=p
    ).norm.cpu()
    expected = {"zeros": 0.0, "nan": math.nan}.get(kind, math.inf)
    if kind == "all_infinite" and p not in (1, 2, math.inf):
        assert not norm.isfinite().any()
    else:
        torch.testing.assert_close(norm, torch.full((2,), expected), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("size", [5, 67, 32_800])
@pytest.mark.usefixtures("two_threads")
def test_a_nan_is_in_every_element_of_a_direction(backend, size, p, dtype):
    """Zeros, too, and elements that are not the largest: a broken sample shows as a whole."""
    grad = torch.zeros(4, size, dtype=dtype)
    grad[:, 1] = 3
    grad[1, 0] = grad[2, -1] = math.nan
    step = backend.ops.dual_direction(backend.place(grad), p=p).cpu()
    assert bool(step[1:3].isnan().all())
    assert bool(step[[0, 3]].isfinite().all())
    base = torch.ones_like(grad)
    moved = backend.ops.dual_direction(backend.place(grad), p=p, base=backend.place(base)).cpu()
    assert torch.equal(moved.isnan(), step.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("size", [5, 67, 32_800])
@pytest.mark.usefixtures("two_threads")
def test_a_broken_factor_shows_in_zeros_too(backend, size, p, dtype):
    """An infinite or NaN factor times 0 is NaN: of elements that are 0, and of rows of zeros."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factor = torch.tensor([math.inf, -math.inf, math.nan, 2.0], dtype=wide).repeat(2)
    grad = torch.zeros(8, size, dtype=dtype)
    grad[:4, 1] = 3
    grad[:4, -1] = -3
    expected = reference.dual_direction(grad, factor, p=p)
    assert bool(expected[[0, 1, 2, 4, 5, 6], 0].isnan().all())
    step = backend.ops.dual_direction(backend.place(grad), backend.place(factor), p=p).cpu()
    torch.testing.assert_close(step, expected, equal_nan=True)
    base = torch.ones_like(grad)
    moved = backend.ops.dual_direction(
        backend.place(grad), backend.place(factor), p=p, base=backend.place(base)
    ).cpu()
    torch.testing.assert_close(moved, base + expected, equal_nan=True)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("size", [3, 67, 32_800])
@pytest.mark.usefixtures("two_threads")
def test_a_loss_that_overflows_has_the_gradients_of_the_reference(backend, size, p):
    grad = torch.zeros(3, size)
    grad[:2, :2] = 1e-3
    problem = Problem(
        torch.tensor([[300.0, 2.0], [2.0, 2.5], [300.0, 2.0]]), torch.tensor([1, 1, 1]), grad
    )

    def gradients(ops, placed):
        out = ops.average_margin_loss(
            *(placed.logits, placed.target, placed.grad),
            p=p,
            regularizer=REGULARIZERS["exponential"],
            reduction="none",
        )
        found = torch.autograd.grad(out.loss.sum(), (placed.logits, placed.grad))
        return [out.loss.detach().cpu(), *(g.cpu() for g in found)]

    ours = gradients(backend.ops, problem.to(backend.device).requires_grad_())
    theirs = gradients(reference, problem.to("cpu").requires_grad_())
    assert bool(theirs[2][0, 2:].isnan().all())
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", ["ramp", "hinge", "softplus", "exponential", "linear"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_nan_row_is_nan_in_every_output_of_its_sample(backend, masked, kind, p):
    problem = random_problem(3, 4, (11,), torch.float32)
    problem.grad[1, ::2] = 0
    problem.grad[1, 6] = math.nan
    if masked:  # an infinite gap, whose margin no finite norm changes
        problem.logits[1] = -math.inf
        problem.logits[1, problem.target[1]] = 1
    placed = problem.to(backend.device).requires_grad_()
    out = backend.ops.average_margin_loss(
        *(placed.logits, placed.target, placed.grad),
        p=p,
        regularizer=REGULARIZERS[kind],
        reduction="none",
    )
    grad_logits, grad_grad = torch.autograd.grad(out.loss.sum(), (placed.logits, placed.grad))
    broken = torch.tensor([False, True, False])
    for values in (out.loss, out.margin, out.norm):
        assert torch.equal(values.detach().cpu().isnan(), broken)
    assert torch.equal(grad_grad.cpu().isnan().all(1), broken)
    assert torch.equal(grad_grad.cpu().isnan().any(1), broken)
    assert torch.equal(grad_logits.cpu().isnan().any(1), broken)
    assert bool(grad_logits[1, problem.target[1]].isnan())
