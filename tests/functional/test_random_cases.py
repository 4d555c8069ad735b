"""Random shapes, layouts, types, ties, zero rows, infinities and NaN: the compiled ops against the
reference.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from layouts import DENSE, NOT_DENSE, lay_out
from problems import NORMS, REGULARIZERS
from torch import Tensor

from margin_ext import reference
from margin_ext.regularizers import Regularizer

TYPES = {
    "narrow": [torch.float16, torch.bfloat16, torch.float32],
    "wide": [torch.float64],
}
# Values that tie, vanish, overflow 16 bits when squared, or are no numbers at all.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-4, 300.0, math.inf, -math.inf, math.nan]


@st.composite
def tensors(draw, shape, dtype, broken_share: float):
    """Normal numbers, or few values so that ties abound; some entries special; rows of zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        values = torch.randint(-2, 3, shape, generator=generator).double()
    if values.numel() and draw(st.booleans()):
        values[draw(st.integers(0, shape[0] - 1))] = draw(st.sampled_from([0.0, -0.0, 1e-7]))
    usable = SPECIAL if draw(st.floats(0, 1)) < broken_share else SPECIAL[:6]
    for _ in range(draw(st.integers(0, 2)) if values.numel() else 0):
        place = tuple(draw(st.integers(0, n - 1)) for n in shape)
        values[place] = draw(st.sampled_from(usable))
    layout = draw(st.sampled_from([*DENSE, *NOT_DENSE]))
    if any(math.isnan(v) for v in values.flatten().tolist()) or not values.numel():
        return values.to(dtype)
    return lay_out(values.to(dtype), layout)


@st.composite
def cases(draw):
    width = draw(st.sampled_from(["narrow", "narrow", "wide"]))
    batch = draw(st.integers(0, 5))
    classes = draw(st.sampled_from([2, 3, 4, 7, 8, 9, 16, 17, 33]))
    sample = draw(
        st.sampled_from([(1,), (3,), (8,), (33,), (130,), (2, 5), (3, 2, 3), (1, 4), (4, 1, 9)])
    )
    dtype = draw(st.sampled_from(TYPES[width]))
    kind = draw(st.sampled_from(sorted(REGULARIZERS)))
    options = {
        "p": draw(st.sampled_from(NORMS)),
        "regularizer": REGULARIZERS[kind],
        "mu": draw(st.sampled_from([0.0, 0.5, 2.0])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.25])),
        "reduction": draw(st.sampled_from(["none", "mean", "sum"])),
        "input_std": draw(st.sampled_from([None, 0.5, "channels"])),
    }
    if options["input_std"] == "channels":
        options["input_std"] = [0.25 + 0.5 * i for i in range(sample[0])]
    if draw(st.booleans()):
        options["weight"] = torch.arange(classes).double() / classes
    target = torch.tensor(
        draw(st.lists(st.integers(-1, classes - 1), min_size=batch, max_size=batch)),
        dtype=torch.int64,
    )
    target[target < 0] = -100
    return {
        "logits": draw(tensors((batch, classes), dtype, 0.3)),
        "target": target,
        "grad": draw(tensors((batch, *sample), draw(st.sampled_from(TYPES[width])), 0.3)),
        "factor": draw(st.sampled_from(SPECIAL)),
        "options": options,
    }


def tolerance(*tensors):
    """Of results that were rounded once to the coarsest type."""
    return max(8 * max(torch.finfo(t.dtype).eps for t in tensors), 1e-12)


def assert_close(ours, theirs, relative, where=None):
    """Relative to the largest finite number of each row; the same NaN and infinities."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    ours, theirs = ours.double(), theirs.double()
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    if not theirs.numel():
        return
    finite = theirs.isfinite()
    scale = float(theirs[finite].abs().max()) if bool(finite.any()) else 1.0
    torch.testing.assert_close(
        ours, theirs, rtol=relative, atol=relative * scale + 1e-7, equal_nan=True
    )


def error_growth(regularizer: Regularizer, margin: Tensor) -> float:
    """How many times the margins' relative error the regularizer's is: exp(-m / h) has |m| / h.

    Of margins whose exponential is neither 0 nor infinite; the others have no error.
    """
    if regularizer.kind != "exponential":
        return 1.0
    exponent = margin.abs() / regularizer.hi
    exponent = exponent[exponent.exp().isfinite()]
    return 1 + float(exponent.max()) if exponent.numel() else 1.0


@given(case=cases())
@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_loss_agrees_with_the_reference(compiled, case):
    def run(ops, device):
        logits = case["logits"].to(device).detach().requires_grad_()
        grad = case["grad"].to(device).detach().requires_grad_()
        options = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v
            for k, v in case["options"].items()
        }
        out = ops.average_margin_loss(logits, case["target"].to(device), grad, **options)
        gradients = torch.autograd.grad(out.loss.sum() * 0.5, (logits, grad))
        kept = [out.loss.detach(), out.margin, out.gap, out.norm, out.statistics.values_tensor]
        return [t.cpu() for t in (*kept, *gradients)]

    ours = run(compiled.ops, compiled.device)
    theirs = run(reference, "cpu")
    relative = tolerance(torch.empty(0, dtype=torch.float32)) * 4
    if case["logits"].dtype == torch.float64:
        relative = 1e-11
    for a, b in zip(ours[1:4], theirs[1:4], strict=True):  # margin, gap, norm
        assert_close(a, b, relative)
    relative *= error_growth(case["options"]["regularizer"], theirs[1])
    for a, b in ((ours[0], theirs[0]), (ours[4], theirs[4])):
        assert_close(a, b, relative)
    # A row whose margin is no number has no gradient by grad that means anything.
    sound = theirs[1].isfinite() & theirs[3].isfinite()
    # Weights that sum to 0: the mean is NaN, and its gradients are, of ignored samples too.
    no_mean = case["options"]["reduction"] == "mean" and not bool(theirs[0].isfinite())
    sound &= not no_mean
    ignored = case["target"] == -100
    for a, b in zip(ours[5:], theirs[5:], strict=True):
        assert_close(a, b, max(relative, tolerance(a)), sound & ~ignored)
        # Torch has NaN where an ignored row holds inf.
        assert no_mean or not a[ignored].any()


@given(case=cases())
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_direction_and_margin_agree_with_the_reference(compiled, case):
    grad, p, std = case["grad"], case["options"]["p"], case["options"]["input_std"]
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    gap = torch.linspace(-1, 2, grad.shape[0], dtype=wide)
    placed = compiled.place(grad)
    ours = compiled.ops.first_order_margin(compiled.place(gap), placed, p=p, input_std=std)
    theirs = reference.first_order_margin(gap, grad, p=p, input_std=std)
    relative = 1e-11 if grad.dtype == torch.float64 else 4e-6
    assert_close(ours.norm.cpu(), theirs.norm, relative)
    assert_close(ours.margin.cpu(), theirs.margin, relative)
    factor = gap.clone()
    if len(factor):
        factor[0] = case["factor"]
    step = compiled.ops.dual_direction(
        placed, compiled.place(factor), p=p, base=placed, input_std=std
    ).cpu()
    expected = reference.dual_direction(grad, factor, p=p, base=grad, input_std=std)
    assert_close(step, expected, max(relative, tolerance(grad)), theirs.norm.isfinite())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gap_of_many_random_rows(compiled, dtype, seed):
    """Exact: a maximum and one subtraction, of float32 numbers."""
    generator = torch.Generator().manual_seed(seed)
    for classes in (2, 3, 5, 8, 13, 16, 31, 100):
        logits = torch.randint(-4, 5, (200, classes), generator=generator).to(dtype) / 2
        target = torch.randint(classes, (200,), generator=generator)
        ours = compiled.ops.logit_gap(compiled.place(logits), compiled.place(target))
        theirs = reference.logit_gap(logits, target)
        assert torch.equal(ours.gap.cpu(), theirs.gap)
        assert torch.equal(ours.runner_up.cpu(), theirs.runner_up)
