"""What a step is for ``every`` and ``warmup``: SAM, LBFGS, accumulation, loops by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss
from margin_ext.training_steps import StepCounter

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Calls:
    """The calls of a criterion: whether they had margins, and how much mu."""

    def __init__(self, **options):
        self.model = network()
        self.criterion = AverageMarginLoss(regularizer="softplus", **options)
        self.margins: list[bool] = []
        self.regularizers: list[float] = []

    def __call__(self) -> torch.Tensor:
        out = self.criterion.run(self.model, X, Y)
        self.margins.append(not bool(out.margin.isnan().any()))
        ce = nn.functional.cross_entropy(out.logits, Y)
        self.regularizers.append(float((out.loss - ce).detach()))
        self.model.zero_grad()
        out.loss.backward()
        return out.loss

    def ascend(self, sign: float) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(sign * 0.01 * torch.ones_like(p))


def groups(values: list, size: int) -> list[list]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def test_a_plain_loop_counts_the_steps_of_its_optimizer():
    calls = Calls(every=3)
    optimizer = torch.optim.SGD(calls.model.parameters(), 0.01)
    for _ in range(9):
        calls()
        optimizer.step()
    assert calls.margins == [True, False, False] * 3
    assert calls.criterion.steps == 9


class SAM(torch.optim.Optimizer):
    """As it is usually written, around another optimizer."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, 0.01)

    @torch.no_grad()
    def move(self, sign):
        for p in self.parameters():
            p.add_(sign * 0.05 * p.grad / (p.grad.norm() + 1e-12))

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"]]

    def first_step(self):
        self.kept = [p.detach().clone() for p in self.parameters()]
        self.move(1)

    def second_step(self):
        with torch.no_grad():
            for p, kept in zip(self.parameters(), self.kept, strict=True):
                p.copy_(kept)
        self.base.step()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@pytest.mark.parametrize("form", ["two methods", "closure"])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_both_passes_of_sam_see_the_same_loss(every, form):
    calls = Calls(every=every)
    optimizer = SAM(calls.model.parameters())
    for _ in range(8):
        calls()
        if form == "closure":
            optimizer.step(calls)
        else:
            optimizer.first_step()
            calls()
            optimizer.second_step()
    pairs = groups(calls.margins, 2)[1:]  # that there is an optimizer is seen after the first step
    assert pairs == [[step % every == 0] * 2 for step in range(1, 8)]
    assert calls.criterion.steps == 8


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_all_calls_of_lbfgs_in_a_step_see_the_same_loss(search):
    calls, margins = Calls(every=2, warmup=4), []
    parameters = list(calls.model.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, 0.1, 5, tolerance_grad=0, tolerance_change=0, line_search_fn=search
    )
    for _ in range(4):
        calls.margins.clear()
        optimizer.step(calls)
        assert len(calls.margins) > 2
        assert len(set(calls.margins)) == 1
        margins.append(calls.margins[0])
    assert margins == [True, False, True, False]
    assert calls.criterion.steps == 4


def test_a_step_that_an_error_has_left_is_over():
    def fails():
        raise ValueError("no loss")

    calls = Calls(every=2)
    with pytest.raises(ValueError, match="no loss"):
        torch.optim.LBFGS(calls.model.parameters()).step(fails)
    for _ in range(4):
        calls()
    assert calls.margins == [True, False, True, False]


def test_the_parts_of_an_accumulated_batch_are_one_step():
    calls = Calls(every=2)
    optimizer = torch.optim.AdamW(calls.model.parameters())
    for _ in range(4):
        for _ in range(3):
            calls()
        optimizer.step()
    assert groups(calls.margins, 3)[1:] == [[False] * 3, [True] * 3, [False] * 3]


def test_warmup_rises_with_the_optimizers_steps():
    calls = Calls(warmup=3)
    optimizer = torch.optim.SGD(calls.model.parameters(), 0.0)
    for _ in range(5):
        for _ in range(2):
            calls()
        optimizer.step()
    found = torch.tensor(calls.regularizers[2:]).view(-1, 2)
    torch.testing.assert_close(found[:, 0], found[:, 1])
    full = float(found[-1, 0])
    torch.testing.assert_close(found[:, 0] / full, torch.tensor([0.5, 0.75, 1.0, 1.0]))


@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_by_hand_every_call_of_a_step_has_its_share(every, size):
    """No optimizer: margins come as often as asked, and in all calls of such a step."""
    calls = Calls(every=every)
    for _ in range(40 * every):
        calls()
        calls.ascend(1e-6)
    assert sum(calls.margins) == 40
    assert calls.margins[: 2 * every] == ([True] + [False] * (every - 1)) * 2
    share = torch.tensor(groups(calls.margins, size)[: 40 * every // size]).float().mean(0)
    assert bool((share > 0.25 / every).all())


@pytest.mark.parametrize("every", [1, 2, 4])
def test_by_hand_one_step_says_what_a_step_is(every):
    calls = Calls(every=every)
    for _ in range(8):
        with calls.criterion.one_step():
            calls()
            calls.ascend(1)
            with calls.criterion.one_step():  # inside of another it changes nothing
                calls()
            calls.ascend(-1)
    assert groups(calls.margins, 2) == [[step % every == 0] * 2 for step in range(8)]
    assert calls.criterion.steps == 8


def test_a_resumed_training_goes_on_where_it_was():
    calls = Calls(every=3)
    optimizer = torch.optim.SGD(calls.model.parameters(), 0.01)
    for _ in range(4):
        calls()
        optimizer.step()
    resumed = Calls(every=3)
    resumed.criterion.steps = calls.criterion.steps
    copied = Calls()
    copied.criterion = copy.deepcopy(calls.criterion)
    for other in (resumed, copied):
        optimizer = torch.optim.SGD(other.model.parameters(), 0.01)
        for _ in range(5):
            other()
            optimizer.step()
        assert other.margins == [False, False, True, False, False]


def test_validation_is_no_step():
    calls = Calls(every=2)
    with torch.no_grad():
        calls.criterion.run(calls.model, X, Y)
    calls.criterion.eval()
    calls()
    assert calls.criterion.steps == 0


@pytest.mark.parametrize("begun", [0, 5, 6, 7, 30, 100])
def test_a_continued_training_takes_the_turns_of_one_that_was_not_stopped(begun: int) -> None:
    """Also in its first call, before the optimizer has stepped in this process."""
    every = 3
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    counter = StepCounter()
    counter.steps = begun
    for step in range(begun, begun + 8):
        found = counter.next_call()
        assert found == step
        assert counter.has_turn(found, every) is (step % every == 0)
        parameter.grad = torch.zeros(1)
        optimizer.step()
