"""What only a GPU can show: graphs, streams, sizes past 2^31, agreement with the emulator."""

from __future__ import annotations

import math

import pytest
import torch
from backends import simt
from torch import Tensor

from margin_ext import AverageMarginLoss, Regularizer, average_margin_loss, functional, reference
from margin_ext._extension import cuda_library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and cuda_library.loaded),
        reason="no GPU is at hand, or the CUDA library is not built",
    ),
]
PHI = Regularizer.ramp(0.0, 3.0)
# (B, D): one for each variant of csrc/cuda/policy.h, and rows that no block holds.
SHAPES = [(64, 784), (64, 3072), (8, 150_528), (2, 150_528), (1, 4_000_001), (300, 17)]


def problem(batch: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * size)
    logits = torch.randn(batch, 10, generator=generator)
    target = torch.randint(0, 10, (batch,), generator=generator)
    grad = torch.randn(batch, size, generator=generator).to(dtype)
    return logits.cuda(), target.cuda(), grad.cuda()


def run(logits: Tensor, target: Tensor, grad: Tensor, **options: object) -> list[Tensor]:
    z, g = logits.clone().requires_grad_(), grad.clone().requires_grad_()
    out = average_margin_loss(z, target, g, regularizer=PHI, **options)
    out.loss.backward()
    return [out.loss, out.margin, out.norm, z.grad, g.grad]


def judged(logits: Tensor, target: Tensor, grad: Tensor, **options: object) -> list[Tensor]:
    """What `run` should return, in float64."""
    z, g = logits.double().requires_grad_(), grad.double().requires_grad_()
    out = reference.average_margin_loss(z, target, g, regularizer=PHI, **options)
    out.loss.backward()
    return [out.loss, out.margin, out.norm, z.grad, g.grad]


@pytest.mark.parametrize("p", [1, 2, "inf", 3])
@pytest.mark.parametrize(("batch", "size"), SHAPES)
def test_agrees_with_the_float64_reference(batch, size, p):
    logits, target, grad = problem(batch, size)
    ours = run(logits, target, grad, p=p)
    for got, expected in zip(ours, judged(logits, target, grad, p=p), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "size"), [*SHAPES, (1000, 3072)])
def test_sixteen_bits_agree_with_the_float64_reference(batch, size, dtype):
    logits, target, grad = problem(batch, size, dtype)
    loss, margin, norm, _, row_grad = run(logits, target, grad)
    expected_loss, expected_margin, expected_norm, _, expected_grad = judged(logits, target, grad)
    for got, expected in ((loss, expected_loss), (margin, expected_margin), (norm, expected_norm)):
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-6)
    unit = torch.finfo(dtype).eps
    atol = unit * float(expected_grad.abs().max()) + torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(row_grad.double(), expected_grad, rtol=unit, atol=atol)


@pytest.mark.parametrize("shape", [(64, 3, 28, 28), (64, 3, 32, 32), (4, 3, 224, 224), (4, 5, 17)])
def test_channels_agree_with_the_float64_reference(shape):
    logits, target, grad = problem(shape[0], math.prod(shape[1:]))
    std = [0.2 + 0.05 * channel for channel in range(shape[1])]
    grad = grad.view(shape)
    found = run(logits, target, grad, input_std=std)
    for got, expected in zip(found, judged(logits, target, grad, input_std=std), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)]
)
def test_channels_of_rows_beyond_the_shared_memory_agree(p, dtype):
    """3 x 600 x 600: 4.3 MB, of which eight blocks keep 1.8 MB."""
    grad = torch.randn(3, 3, 600, 600, generator=torch.Generator().manual_seed(1)).to(dtype).cuda()
    factor, std = torch.ones(3, device="cuda"), [0.2, 0.25, 0.3]
    found = functional.dual_direction(grad, factor, p=p, input_std=std)
    right = reference.dual_direction(grad.double(), factor.double(), p=p, input_std=std)
    unit = max(torch.finfo(dtype).eps, 2e-5)
    torch.testing.assert_close(found.double(), right, rtol=unit, atol=1e-6)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize(("batch", "size"), [(64, 783), (64, 3071), (4, 150_529)])
def test_rows_off_the_16_byte_boundaries_agree(batch, size, offset):
    logits, target, grad = problem(batch, size)
    moved = torch.empty(grad.numel() + offset, device=grad.device)[offset:].view(grad.shape)
    moved.copy_(grad)
    for got, expected in zip(
        run(logits, target, moved), judged(*problem(batch, size)), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, "inf"])
@pytest.mark.parametrize(("batch", "size"), SHAPES)
def test_the_additive_margin_agrees_with_the_float64_reference(batch, size, p):
    logits, target, grad = problem(batch, size)
    tau = 1 / float(reference.dual_norm(grad, p=p).mean())  # Neither term drowns the other.
    z, g = logits.requires_grad_(), grad.requires_grad_()
    loss = functional.additive_margin_loss(z, target, g, tau=tau, p=p).loss
    found = [loss, *torch.autograd.grad(loss, [z, g])]
    z, g = (t.detach().double().requires_grad_() for t in (z, g))
    loss = reference.additive_margin_loss(z, target, g, tau=tau, p=p).loss
    for got, expected in zip(found, [loss, *torch.autograd.grad(loss, [z, g])], strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("p", [1, 2, "inf", 3])
@pytest.mark.parametrize(("batch", "size"), SHAPES)
def test_attack_steps_agree_with_the_float64_reference(batch, size, p, in_place):
    _, _, grad = problem(batch, size)
    center = grad.sigmoid()
    x, length, radius = center + 0.1 * grad.flip(1), grad[:, 0].abs(), grad[:, -1].abs()
    given = (x, grad, length, center, radius)
    ends = x.new_zeros(1), x.new_full((1,), 0.9)
    wide = tuple(end.double() for end in ends)
    expected = reference.attack_step(*(t.double() for t in given), p=p, data_range=wide)
    found = functional.attack_step(*given, p=p, data_range=ends, in_place=in_place)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)
    assert (found.data_ptr() == x.data_ptr()) is in_place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "size"), [(64, 784), (16, 3072), (2, 150_528), (30, 17)])
def test_class_margins_agree_with_the_float64_reference(batch, size, dtype):
    _, _, rows = problem(batch * 5, size, dtype)
    grad = rows.view(batch, 5, size)
    gap = grad[:, :, 0].float()
    norms = (1, 2, "inf")
    found = functional.class_margins(gap, grad, p=norms)
    expected = reference.class_margins(gap.double(), grad.double(), p=norms)
    for got, right in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(got.double(), right, rtol=2e-5, atol=0)
    assert torch.equal(found.nearest, expected.nearest)


@pytest.mark.parametrize(("batch", "size"), SHAPES)
def test_repeats_bit_for_bit(batch, size):
    inputs = problem(batch, size)
    first = run(*inputs)
    for _ in range(5):
        for a, b in zip(first, run(*inputs), strict=True):
            assert torch.equal(a, b)


def test_a_captured_graph_replays_beside_eager_launches():
    logits, target, grad = problem(128, 3072)
    expected = run(logits, target, grad)
    z, g = logits.clone().requires_grad_(), grad.clone().requires_grad_()

    def step() -> Tensor:
        z.grad = g.grad = None
        loss = average_margin_loss(z, target, g, regularizer=PHI).loss
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(50):
        graph.replay()
        with torch.cuda.stream(side):
            run(logits, target, grad)
    torch.cuda.synchronize()
    assert torch.equal(loss, expected[0])
    assert torch.equal(g.grad, expected[4])


@pytest.mark.parametrize("count", [2, 32])
def test_streams_do_not_disturb_each_other(count):
    problems = [problem(64 + i, 3072 if i % 2 else 784) for i in range(count)]
    expected = [run(*one) for one in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream, one in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                found.append(run(*one))
    torch.cuda.synchronize()
    for i, outputs in enumerate(found):
        for a, b in zip(outputs, expected[i % count], strict=True):
            assert torch.equal(a, b)


# Torch's own, of what it says when it is asked to watch.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_a_step_does_not_synchronise():
    criterion = AverageMarginLoss().cuda()
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.GELU(), torch.nn.Linear(32, 10))
    model.cuda()
    x, target = torch.randn(16, 20, device="cuda"), torch.zeros(16, dtype=torch.long, device="cuda")
    criterion.run(model, x, target).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion.run(model, x, target).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_label_makes_its_sample_nan_and_validate_names_it():
    logits, target, grad = problem(4, 33)
    target[2] = 10
    out = average_margin_loss(logits, target, grad, regularizer=PHI)
    assert out.loss.isnan()
    assert out.margin.isnan().tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="got 10 at index 2"):
        average_margin_loss(logits, target, grad, regularizer=PHI, validate=True)


def test_more_elements_than_an_int_counts():
    batch, size = 1100, 2_000_003  # 2.2e9 elements, 4.4 GB and as much for their gradient
    free, _ = torch.cuda.mem_get_info()
    if free < 14 << 30:
        pytest.skip("needs 14 GB of GPU memory")
    grad = torch.empty(batch, size, dtype=torch.bfloat16, device="cuda").normal_()
    logits, target, _ = problem(batch, 1)
    z, g = logits.requires_grad_(), grad.requires_grad_()
    out = average_margin_loss(z, target, g, regularizer=PHI)
    out.loss.backward()
    for i in (0, batch - 1):
        row = grad[i].detach().double()
        torch.testing.assert_close(out.norm[i].double(), row.norm(), rtol=1e-5, atol=0.0)
        norm = g.grad[i].double().norm()
        slope = (PHI.hi > out.margin[i]) & (out.margin[i] >= 0)
        expected = slope * (out.margin[i] / out.norm[i]).abs().double() / batch
        torch.testing.assert_close(norm, expected, rtol=1e-2, atol=1e-12)


def test_an_empty_batch_launches_and_returns():
    logits, target, grad = problem(1, 5)
    out = average_margin_loss(logits[:0], target[:0], grad[:0], regularizer=PHI, reduction="sum")
    assert out.loss.item() == 0


@pytest.mark.parametrize(("batch", "size"), [(8, 784), (4, 3072), (2, 20_000)])
def test_agrees_with_the_emulator(batch, size, record_property):
    """The kernels that g++ compiled, on the same inputs; differences in units in the last place."""
    if (reason := simt.missing()) is not None:
        pytest.skip(reason)
    logits, target, grad = problem(batch, size)
    arguments = (None, None, None, 2.0, 1e-6, 1.0, PHI.code, PHI.lo, PHI.hi, 0.0, -100, 1)
    ours = torch.ops.margin_ext.average_margin_loss(logits, target, grad, *arguments, True, True)
    emulated = simt.Simt().average_margin_loss(
        logits.cpu(), target.cpu(), grad.cpu(), *arguments, True, True
    )
    for name, a, b in zip(("loss", "margin", "gap", "norm"), ours, emulated, strict=False):
        distance = (a.cpu().view(torch.int32).long() - b.view(torch.int32).long()).abs().max()
        record_property(f"ulp_{name}", int(distance))
        assert distance <= 64, name
