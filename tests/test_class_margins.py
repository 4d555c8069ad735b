"""class_margins of the compiled CPU kernels against the reference, and the reference by hand."""

from __future__ import annotations

import math

import pytest
import torch
from layouts import lay_out
from torch import Tensor

from margin_ext import functional
from margin_ext._extension import cpu_library
from margin_ext.reference import class_margins as reference_margins

NORMS = (1, 2, math.inf, 3, 1.5)
compiled = pytest.mark.skipif(not cpu_library.loaded, reason="no CPU library")


def problem(
    batch: int, classes: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    gap = torch.randn(batch, classes, generator=generator, dtype=torch.float64).to(acc)
    grad = torch.randn(batch, classes, *shape, generator=generator, dtype=torch.float64)
    return gap, grad.to(dtype)


def require_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    # Sums of roundings: the results are float32 for float16 and bfloat16 too.
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 17, 784, 2047, 2049, 5000])
def test_against_the_reference(dtype: torch.dtype, size: int) -> None:
    gap, grad = problem(3, 5, (size,), dtype)
    found = functional.class_margins(gap, grad, p=NORMS)
    expected = reference_margins(gap.double(), grad.double(), p=NORMS)
    for ours, right in zip(found[:2], expected[:2], strict=True):
        require_close(ours, right.to(ours.dtype), dtype)
    assert torch.equal(found.nearest, expected.nearest)
    assert found.nearest.dtype == torch.int64


@compiled
@pytest.mark.parametrize("std", [None, 0.5, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("order", ["classes first", "channels last", "every other", "expanded"])
def test_strides_and_units(order: str, std: float | tuple[float, ...] | None) -> None:
    gap, grad = problem(4, 6, (3, 5, 7), torch.float32)
    if order == "classes first":
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    elif order == "channels last":
        grad = grad.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 6))
    elif order == "every other":
        grad = lay_out(grad, "every_other")
    else:
        grad = grad[:, :1].expand(-1, 6, -1, -1, -1)
    found = functional.class_margins(gap, grad, p=[2, math.inf], input_std=std)
    expected = reference_margins(gap, grad.contiguous(), p=[2, math.inf], input_std=std)
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("of", [functional.class_margins, reference_margins])
@pytest.mark.parametrize("p", NORMS)
def test_cases_by_hand(of: object, p: float) -> None:
    """Ties, zeros, NaN and infinities."""
    one = torch.tensor([1.0, 0.0, 0.0])
    zero = torch.zeros(3)
    nan, inf = torch.tensor([math.nan, 0.0, 1.0]), torch.tensor([math.inf, 0.0, 0.0])
    cases = [
        ([2.0, 1.0, 1.0], [one, one, one], [2.0, 1.0, 1.0], 1),
        ([2.0, 1.0, 3.0], [zero, zero, one], [math.inf, math.inf, 3.0], 2),
        ([2.0, -1.0, -3.0], [one, zero, one], [2.0, -math.inf, -3.0], 1),
        ([2.0, 0.0, 3.0], [one, zero, one], [2.0, 0.0, 3.0], 1),
        ([0.0, 0.0, 0.0], [zero, one, one], [0.0, 0.0, 0.0], 0),
        ([2.0, -1.0, 3.0], [one, one, nan], [2.0, -1.0, math.nan], 2),
        ([2.0, math.nan, math.nan], [one, one, zero], [2.0, math.nan, math.nan], 1),
        ([2.0, 1.0, 3.0], [one, inf, one], [2.0, 0.0, 3.0], 1),
        ([2.0, 2.0, 2.0], [zero, zero, zero], [math.inf] * 3, 0),
    ]  # fmt: skip
    gap = torch.tensor([case[0] for case in cases])
    grad = torch.stack([torch.stack(case[1]) for case in cases])
    found = of(gap, grad, p=[p])  # type: ignore[operator]
    margins = torch.tensor([case[2] for case in cases])
    torch.testing.assert_close(found.margin[0], margins, equal_nan=True)
    assert found.nearest[0].tolist() == [case[3] for case in cases]


@pytest.mark.parametrize("of", [functional.class_margins, reference_margins])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_in_the_whole_range(of: object, scale: float) -> None:
    gap, grad = problem(2, 3, (50,), torch.float32)
    plain, scaled = (of(gap, grad * s, p=NORMS) for s in (1.0, scale))  # type: ignore[operator]
    torch.testing.assert_close(scaled.norm / scale, plain.norm, rtol=1e-5, atol=0)


@compiled
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 0, 4), (2, 3, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    gap, grad = torch.zeros(shape[:2]), torch.zeros(shape)
    if shape[2] == 0:
        for of in (functional.class_margins, reference_margins):
            with pytest.raises(ValueError, match="at least one element a class"):
                of(gap, grad)
        return
    for of in (functional.class_margins, reference_margins):
        found = of(gap, grad, p=[2, 1])
        assert found.margin.shape == found.norm.shape == (2, *shape[:2])
        assert found.nearest.tolist() == [[-1] * shape[0]] * 2


@compiled
def test_rows_far_apart_in_memory() -> None:
    """Strides times numbers beyond 31 bits, in 7 GB of memory that is never touched."""
    gap = torch.ones(2, 2)
    storage = torch.empty(7 * 2**30, dtype=torch.uint8).view(torch.float16)
    grad = storage.as_strided((2, 2, 8), (2**31, 2**30, 1))
    grad.copy_(torch.arange(32.0).reshape(2, 2, 8) % 5)
    found = functional.class_margins(gap, grad, p=[2])
    expected = reference_margins(gap, grad.clone(), p=[2])
    torch.testing.assert_close(found.margin, expected.margin)


@compiled
def test_threads_change_no_bit() -> None:
    gap, grad = problem(8, 9, (3000,), torch.float32)
    alone = functional.class_margins(gap, grad, p=NORMS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = functional.class_margins(gap, grad, p=NORMS)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_gradients_come_from_the_reference() -> None:
    gap, grad = problem(2, 3, (4,), torch.float64)
    gap.requires_grad_(), grad.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: functional.class_margins(a, b, p=[2, 3])[:2], (gap, grad)
    )


@compiled
@pytest.mark.parametrize(
    ("gap", "grad", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), {}, r"\[B, K, ...\]"),
        (torch.zeros(2, 4), torch.zeros(2, 3, 5), {}, r"gap must be \[2, 3\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 5), {"p": []}, "norm"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 5), {"p": [0.5]}, "p must be"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 5), {"input_std": (1.0, 2.0)}, "one value a channel"),
    ],
)
def test_arguments_that_do_not_fit(
    gap: Tensor, grad: Tensor, options: dict[str, object], message: str
) -> None:
    for of in (functional.class_margins, reference_margins):
        with pytest.raises(ValueError, match=message):
            of(gap, grad, **options)  # type: ignore[arg-type]


@compiled
def test_more_norms_than_a_launch_takes() -> None:
    gap, grad = problem(2, 3, (4,), torch.float64)
    many = [1 + i / 4 for i in range(11)]
    found, expected = (
        of(gap, grad, p=many) for of in (functional.class_margins, reference_margins)
    )
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right)
    with pytest.raises(ValueError, match="1 to 8 norms, got 9"):
        torch.ops.margin_ext.class_margins(gap, grad, [2.0] * 9, None)
