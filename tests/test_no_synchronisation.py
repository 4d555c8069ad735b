"""A step with the loss: few op calls, nothing computed twice, no wait for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from margin_ext import AverageMarginLoss, Regularizer, average_margin_loss
from margin_ext._extension import cpu_library
from margin_ext.gradient_modes import gradient_mode_names
from margin_ext.input_std import channel_scale

compiled_only = pytest.mark.skipif(
    not cpu_library.loaded, reason="counts calls of the compiled ops, and no library is built"
)
# What asks the device for a value, or for a size that depends on values. On a CPU these cost
# nothing; on a GPU the host waits there until everything before is done.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select"}
# Which class each gap is to, then, with the gradient of the gaps, the loss. Finite differences also
# take a step along the gradient.
OPS_FORWARD = {
    "double_backward": ["logit_gap", "average_margin_loss"],
    "detached": ["logit_gap", "average_margin_loss"],
}
BATCH, SIZE, CLASSES = 8, 12, 5


class CallCounter(TorchDispatchMode):
    """Counts calls of ops by name, ours apart from torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []
        self.torchs: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "margin_ext":
            self.ours.append(name)
        else:
            self.torchs[name] += 1
        return func(*args, **(kwargs or {}))


class CountedNet(nn.Module):
    """Smooth, and counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layers(x)


def batch(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(BATCH, SIZE, device=device)
    return inputs, torch.randint(CLASSES, (BATCH,), device=device)


@compiled_only
def test_no_gradients_are_computed_that_nobody_can_ask_for():
    logits = torch.randn(BATCH, CLASSES, requires_grad=True)
    grad = torch.randn(BATCH, SIZE, requires_grad=True)
    target = torch.randint(CLASSES, (BATCH,))
    made: list[int] = []

    class Outputs(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ == "average_margin_loss":
                made.append(sum(tensor.numel() for tensor in out[5:]))
            return out

    with Outputs():
        average_margin_loss(logits, target, grad, regularizer=Regularizer.ramp(0, 1))
        with torch.no_grad():
            average_margin_loss(logits, target, grad, regularizer=Regularizer.ramp(0, 1))
    assert made == [BATCH * (CLASSES + SIZE), 0]


@compiled_only
@pytest.mark.parametrize("mode", sorted(OPS_FORWARD))
def test_two_op_calls_forward_one_backward_and_nothing_twice(mode):
    model, criterion = CountedNet(), AverageMarginLoss(gradient=mode)
    inputs, target = batch()
    with CallCounter() as forward:
        loss = criterion.run(model, inputs, target).loss
    assert forward.ours == OPS_FORWARD[mode]
    assert model.passes == 1
    with CallCounter() as backward:
        loss.backward()
    assert backward.ours == ["scale_gradients_"]
    assert model.passes == 1


@compiled_only
def test_the_loss_alone_is_one_call_each_way():
    logits = torch.randn(BATCH, CLASSES, requires_grad=True)
    grad = torch.randn(BATCH, SIZE, requires_grad=True)
    _, target = batch()
    with CallCounter() as forward:
        loss = average_margin_loss(logits, target, grad, regularizer=Regularizer.ramp(0, 3)).loss
    assert forward.ours == ["average_margin_loss"]
    # An op whose inputs need no cast and no copy needs no help from torch's.
    assert not forward.torchs
    with CallCounter() as backward:
        loss.backward()
    assert backward.ours == ["scale_gradients_"]


@compiled_only
@pytest.mark.parametrize("mode", gradient_mode_names())
def test_every_mode_computes_the_loss_once(mode):
    model, criterion = CountedNet(), AverageMarginLoss(gradient=mode)
    inputs, target = batch()
    criterion.run(model, inputs, target).loss.backward()  # "auto" may try things out, once
    with CallCounter() as calls:
        criterion.run(model, inputs, target).loss.backward()
    assert calls.ours.count("average_margin_loss") == 1
    assert "average_margin_loss_backward" not in calls.ours


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is looked at on the CPU alone, where it costs no wait, is not looked at."""
    monkeypatch.setattr("margin_ext.checks._AT_HAND", ())


@compiled_only
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("mode", gradient_mode_names())
def test_no_step_asks_the_device_for_a_value(mode):
    model, criterion = CountedNet(), AverageMarginLoss(gradient=mode)
    inputs, target = batch()
    criterion.run(model, inputs, target).loss.backward()
    with CallCounter() as calls:
        criterion.run(model, inputs, target).loss.backward()
    assert not WAITING & set(calls.torchs)


@compiled_only
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("mode", gradient_mode_names())
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
def test_no_step_with_dense_labels_asks_either(mode, soft):
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, CLASSES, 1))
    criterion = AverageMarginLoss(gradient=mode)
    inputs = torch.randn(BATCH, 2, 9)
    target = torch.randint(CLASSES, (BATCH, 7))
    if soft:
        target = nn.functional.one_hot(target, CLASSES).movedim(-1, 1).float()
    criterion.run(model, inputs, target).loss.backward()
    with CallCounter() as calls:
        criterion.run(model, inputs, target).loss.backward()
    assert not WAITING & set(calls.torchs)


def test_the_counter_sees_a_wait():
    with CallCounter() as calls:
        float(torch.ones(3).sum())
    assert calls.torchs["_local_scalar_dense"] == 1


@pytest.mark.parametrize("input_std", [0.25, (0.2, 0.25, 1), 1e300])
def test_a_few_standard_deviations_are_not_copied_to_the_device(input_std):
    grad = torch.empty(2, 3, 4, device="meta")
    with CallCounter() as calls:
        scale = channel_scale(input_std, grad)
    assert calls.torchs["full"] == scale.numel()  # A copy is none of torch's ops.
    assert scale.device == grad.device
    assert scale.shape == channel_scale(input_std, torch.empty(2, 3, 4)).shape


def test_standard_deviations_of_other_forms_are_refused_on_a_device_too():
    with pytest.raises(ValueError, match=r"got \[1, 3\]"):
        channel_scale([[0.2, 0.25, 1.0]], torch.empty(2, 3, 4, device="meta"))


@contextmanager
def synchronisation_forbidden() -> Iterator[None]:
    """Torch raises where the host would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: nothing to synchronise with"
)


@pytest.mark.cuda
@needs_cuda
# Torch's own, of what it says when it is asked to watch.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("mode", gradient_mode_names())
def test_no_step_synchronises_on_cuda(mode):
    model, criterion = CountedNet().cuda(), AverageMarginLoss(gradient=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, target = batch("cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion.run(model, inputs, target).loss.backward()
        optimizer.step()

    step()
    with synchronisation_forbidden():
        for _ in range(3):
            step()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_standard_deviations_in_numbers_do_not_synchronise_on_cuda():
    logits, grad = torch.randn(4, 5, device="cuda"), torch.randn(4, 3, 8, device="cuda")
    target = torch.zeros(4, dtype=torch.long, device="cuda")
    for input_std in (0.5, [0.2, 0.25, 0.3]):
        with synchronisation_forbidden():
            average_margin_loss(
                logits, target, grad, regularizer=Regularizer.ramp(0, 3), input_std=input_std
            )


@pytest.mark.cuda
@needs_cuda
def test_a_synchronisation_would_be_caught():
    value = torch.ones(3, device="cuda")
    with synchronisation_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):
        value.sum().item()
