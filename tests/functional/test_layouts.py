"""Memory layouts, strides, alignment: the same numbers, read where they lie."""

from __future__ import annotations

import pytest
import torch
from layouts import DENSE, NOT_DENSE, lay_out
from problems import NORMS, random_problem

from margin_ext.regularizers import Regularizer

PHI = Regularizer.softplus(1)
# Two samples of an image each, whose sides and channels all differ, so that a mistaken order of
# dimensions shows; 3 x 5 x 7 = 105 is no multiple of a vector.
IMAGE = (3, 5, 7)
# Rows that the CPU kernels split into chunks among threads: 3 x 150 x 150 = 67,500.
LARGE_IMAGE = (3, 150, 150)


def loss_and_gradients(backend, logits, target, grad, **options):
    logits, grad = logits.requires_grad_(), grad.requires_grad_()
    out = backend.ops.average_margin_loss(logits, target, grad, regularizer=PHI, **options)
    return out, torch.autograd.grad(2 * out.loss, (logits, grad))


@pytest.mark.parametrize("image", [IMAGE, LARGE_IMAGE], ids=["image", "large_image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [*DENSE, *NOT_DENSE])
@pytest.mark.usefixtures("two_threads")
def test_loss(compiled, layout, dtype, image):
    """input_std too: which channel an element belongs to depends on the layout."""
    problem = random_problem(2, 5, image, dtype).to(compiled.device)
    std = [0.5, 1.0, 4.0]
    expected, expected_gradients = loss_and_gradients(
        compiled, problem.logits.clone(), problem.target, problem.grad.clone(), input_std=std
    )
    grad = lay_out(problem.grad, layout)
    out, (grad_logits, grad_grad) = loss_and_gradients(
        compiled, problem.logits, problem.target, grad, input_std=std
    )
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.norm, expected.norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_logits, expected_gradients[0])
    torch.testing.assert_close(grad_grad, expected_gradients[1])
    if layout in DENSE:
        assert grad_grad.stride()[1:] == grad.stride()[1:]
    else:
        assert grad_grad.is_contiguous()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("layout", [*DENSE, *NOT_DENSE])
def test_direction_and_margin(compiled, layout, p):
    problem = random_problem(2, 5, IMAGE, torch.float32).to(compiled.device)
    gap = torch.tensor([1.0, -2.0], device=compiled.device)
    grad = lay_out(problem.grad, layout)
    ours = compiled.ops.first_order_margin(gap, grad, p=p)
    theirs = compiled.ops.first_order_margin(gap, problem.grad, p=p)
    torch.testing.assert_close(ours.margin, theirs.margin)
    torch.testing.assert_close(ours.norm, theirs.norm)
    expected = compiled.ops.dual_direction(problem.grad, gap, p=p, base=problem.grad)
    for base_layout in (layout, "contiguous", "every_other", "channels_last"):
        step = compiled.ops.dual_direction(grad, gap, p=p, base=lay_out(problem.grad, base_layout))
        torch.testing.assert_close(step, expected)
        if layout in DENSE:
            assert step.stride()[1:] == grad.stride()[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_dense_batch_gives_the_same_results_wherever_it_lies(compiled, dtype):
    """On a CPU alignment and batch stride change no order of summation; on CUDA threads sum other
    packs where a row begins elsewhere."""
    problem = random_problem(3, 7, (1001,), dtype).to(compiled.device)
    results = []
    for layout in ("contiguous", "offset", "gaps_between_samples"):
        out, gradients = loss_and_gradients(
            compiled,
            lay_out(problem.logits, layout),
            problem.target,
            lay_out(problem.grad, layout),
        )
        results.append([out.loss.detach(), out.margin, out.norm, *gradients])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            if compiled.device == "cuda":
                torch.testing.assert_close(a, b)
            else:
                assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["every_other", "batch_innermost"])
def test_logits_in_any_layout(compiled, layout):
    problem = random_problem(4, 6, (5,), torch.float32).to(compiled.device)
    logits = lay_out(problem.logits, layout)
    ours = compiled.ops.logit_gap(logits, problem.target)
    theirs = compiled.ops.logit_gap(problem.logits, problem.target)
    assert torch.equal(ours.gap, theirs.gap)
    out, gradients = loss_and_gradients(compiled, logits, problem.target, problem.grad)
    expected, expected_gradients = loss_and_gradients(
        compiled, problem.logits, problem.target, problem.grad
    )
    assert torch.equal(out.loss, expected.loss)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(a, b)


def test_expanded_batches(compiled):
    """One sample for the whole batch, stride 0: the gradients are each sample's own."""
    one = random_problem(1, 5, IMAGE, torch.float32).to(compiled.device)
    logits, grad = one.logits.expand(4, 5), one.grad.expand(4, *IMAGE)
    target = torch.tensor([0, 1, 2, -100], device=compiled.device)
    weight = torch.arange(1, 6, device=compiled.device).float().expand(5)
    out, gradients = loss_and_gradients(
        compiled, logits.detach(), target, grad.detach(), weight=weight
    )
    expected, expected_gradients = loss_and_gradients(
        compiled, logits.detach().clone(), target, grad.detach().clone(), weight=weight
    )
    assert torch.equal(out.loss, expected.loss)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(a, b)
    margin = compiled.ops.first_order_margin(
        torch.ones(1, device=compiled.device).expand(4), grad
    ).margin
    assert bool((margin == margin[0]).all())
    step = compiled.ops.dual_direction(grad, base=grad)
    assert torch.equal(step, step[:1].expand_as(step))


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (7, 1), (1, 7), (2, 1, 3), (5, 1, 1, 1)])
def test_dimensions_of_size_one(compiled, shape):
    """Their strides mean nothing and may be anything."""
    problem = random_problem(3, 4, shape, torch.float32).to(compiled.device)
    size = problem.grad[0].numel()
    strides = [77 if n == 1 else s for n, s in zip(shape, problem.grad.stride()[1:], strict=True)]
    odd = problem.grad.as_strided(problem.grad.shape, (size, *strides))
    for p in NORMS:
        ours = compiled.ops.dual_direction(odd, p=p, input_std=[2.0] * shape[0])
        theirs = compiled.ops.dual_direction(problem.grad, p=p, input_std=[2.0] * shape[0])
        assert torch.equal(ours, theirs)


def test_upstream_of_stride_zero_and_of_any_layout(compiled):
    """sum() sends an expanded number back."""
    problem = random_problem(4, 5, (6,), torch.float32).to(compiled.device).requires_grad_()
    inputs = (problem.logits, problem.grad)

    def each():
        return compiled.ops.average_margin_loss(
            problem.logits, problem.target, problem.grad, regularizer=PHI, reduction="none"
        ).loss

    ones = torch.ones(4, device=compiled.device)
    every_other = torch.ones(8, device=compiled.device)[::2]
    expected = torch.autograd.grad(each(), inputs, ones)
    for upstream in (ones[:1].expand(4), every_other):
        for a, b in zip(torch.autograd.grad(each(), inputs, upstream), expected, strict=True):
            assert torch.equal(a, b)
    margin = compiled.ops.first_order_margin(torch.ones_like(ones), problem.grad)
    (total,) = torch.autograd.grad(margin.margin.sum() + margin.norm.sum(), problem.grad)
    margin = compiled.ops.first_order_margin(torch.ones_like(ones), problem.grad)
    (both,) = torch.autograd.grad((margin.margin, margin.norm), problem.grad, (ones, every_other))
    assert torch.equal(total, both)
