"""The ops under torch.compile and torch.export: opcheck, and a caller that passes grad in."""

from __future__ import annotations

import pytest
import torch
from layouts import lay_out
from problems import random_problem

from margin_ext import functional
from margin_ext._extension import cpu_library
from margin_ext.regularizers import Regularizer

pytestmark = [
    pytest.mark.skipif(not cpu_library.loaded, reason="no CPU library"),
    # The compiler's own use of torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PHI = Regularizer.ramp(-1, 2)
SETTINGS = (2.0, 1e-6, 1.0, 0, -1.0, 2.0, 0.1, -100)


def sample_calls():
    """Every op, with and without its optional arguments, and in layouts whose strides the fakes
    have to predict.
    """
    for layout in ("channels_last", "every_other"):
        problem = random_problem(3, 4, (2, 3, 5), torch.float32)
        logits, target, grad = problem.logits, problem.target, lay_out(problem.grad, layout)
        scale = torch.tensor([0.5, 2.0])
        nearest = (target + 1) % 4
        weight = torch.rand(4)
        gap = torch.randn(3)
        yield f"logit_gap-{layout}", "logit_gap", (lay_out(logits, layout), target, None, -100)
        yield f"logit_gap-nearest-{layout}", "logit_gap", (logits, target, nearest, -100)
        yield f"margin-{layout}", "first_order_margin", (gap, grad, 2.0, 1e-6, scale)
        rows = torch.stack([grad, 2 * grad], dim=1)
        gaps = torch.randn(3, 2)
        yield f"classes-{layout}", "class_margins", (gaps, rows, [2.0, 0.0, 1.5], scale)
        yield f"direction-{layout}", "dual_direction", (grad, gap, None, 1.0, scale)
        yield f"direction-base-{layout}", "dual_direction", (grad, gap, problem.grad, 2.0, None)
        ends = (torch.zeros(2), torch.ones(2))
        step = (problem.grad, grad, gap.abs(), problem.grad, gap.abs())
        yield f"attack-step-{layout}", "attack_step", (*step, 2.0, 1, *ends, scale)
        yield f"attack-step-free-{layout}", "attack_step", (*step, 0.0, 4, None, None, None)
        ball = (grad, None, None, problem.grad, gap.abs())
        yield f"attack-step-ball-{layout}", "attack_step", (*ball, 3.0, 1, None, None, None)
        yield f"attack-step-in-place-{layout}", "attack_step_", (*step, 2.0, 1, *ends, scale)
        optional = (grad, nearest, weight, scale)
        for reduction in range(3):
            yield (
                f"loss-{reduction}-{layout}",
                "average_margin_loss",
                (logits, target, *optional, *SETTINGS, reduction, True, True),
            )
        yield (
            f"backward-{layout}",
            "average_margin_loss_backward",
            (torch.rand(3), logits, target, *optional, *SETTINGS, True, True),
        )
    none = (None,) * 4
    for dtype in (torch.bfloat16, torch.float64):
        wide = logits.to(dtype)
        yield (
            f"loss-of-the-gap-{dtype}",
            "average_margin_loss",
            (wide, target, *none, *SETTINGS, 1, True, False),
        )
    yield (
        "loss-nothing-needed",
        "average_margin_loss",
        (logits, target, grad, None, None, None, *SETTINGS, 1, False, False),
    )
    yield (
        "scale_gradients",
        "scale_gradients_",
        (torch.rand(3, 4), torch.rand(3, 7), torch.tensor(2.0), torch.ones(9)),
    )


CALLS = list(sample_calls())


@pytest.mark.parametrize(("op", "arguments"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_opcheck(request, op, arguments):
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if (
        "loss-of-the-gap" not in request.node.name
    ):  # its statistics hold NaN, which differs from NaN
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.margin_ext, op).default, arguments, test_utils=tests)


def loss(logits, target, grad, reduction="mean"):
    return functional.average_margin_loss(
        logits, target, grad, regularizer=PHI, reduction=reduction
    )


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield lambda function, backend: torch.compile(function, backend=backend, fullgraph=True)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("mode", "reduction"),
    [
        ("aot_eager", "mean"),
        ("aot_eager", "none"),
        pytest.param("inductor", "mean", marks=[pytest.mark.slow]),
    ],
)
def test_compiled_step_of_a_caller_that_passes_the_gradient(compiler, mode, reduction):
    """Forward and backward, with operations around the loss that a compiler may fuse with it."""
    problem = random_problem(4, 5, (3, 7), torch.float32).requires_grad_()
    inputs = (problem.logits, problem.grad)

    def step(logits, target, grad):
        out = loss(logits * 2, target, grad.sin(), reduction)
        return (out.loss * 3).sum(), out.margin

    value, margin = compiler(step, mode)(problem.logits, problem.target, problem.grad)
    expected, expected_margin = step(problem.logits, problem.target, problem.grad)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(margin, expected_margin)
    found = torch.autograd.grad(value, inputs)
    for a, b in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [1, 2, float("inf"), 3])
def test_compiled_margin_and_gap(compiler, p):
    problem = random_problem(4, 5, (7,), torch.float32).requires_grad_()
    inputs = (problem.logits, problem.grad)

    def step(logits, target, grad):
        gap = functional.logit_gap(logits, target).gap
        margin, norm = functional.first_order_margin(gap, grad, p=p)
        moved = functional.dual_direction(grad.detach(), gap.detach(), p=p)
        return (margin.tanh() + norm).sum() + moved.sum()

    value = compiler(step, "aot_eager")(problem.logits, problem.target, problem.grad)
    expected = step(problem.logits, problem.target, problem.grad)
    torch.testing.assert_close(value, expected)
    found = torch.autograd.grad(value, inputs)
    for a, b in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


class Step(torch.nn.Module):
    def forward(self, logits, target, grad):
        out = loss(logits, target, grad)
        return out.loss, out.margin, functional.dual_direction(grad, out.margin)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch_size(strict):
    small, large = (random_problem(n, 5, (3, 7), torch.float32) for n in (4, 9))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Step(),
        (small.logits, small.target, small.grad),
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
        strict=strict,
    )
    for problem in (small, large):
        arguments = (problem.logits, problem.target, problem.grad)
        for a, b in zip(exported.module()(*arguments), Step()(*arguments), strict=True):
            torch.testing.assert_close(a, b)


def test_bad_shapes_are_refused_while_compiling():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        with pytest.raises(ValueError, match="at least 2 classes"):
            functional.logit_gap(torch.empty(3, 1), torch.empty(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="grad must be"):
            functional.first_order_margin(torch.empty(3), torch.empty(3))
