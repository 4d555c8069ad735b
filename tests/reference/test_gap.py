"""The gap's definition: oracles, ties, ignored samples, infinities."""

from __future__ import annotations

import math

import paper_oracles
import pytest
import torch

from margin_ext import reference


def test_gaps_of_the_oracle():
    found = reference.logit_gap(paper_oracles.LOGITS, paper_oracles.TARGET)
    assert found.gap.tolist() == paper_oracles.GAPS
    assert found.runner_up.tolist() == paper_oracles.RUNNERS_UP


@pytest.mark.parametrize(
    ("logits", "target", "gap", "runner_up"),
    [
        ([1.0, 1.0, 1.0], 1, 0.0, 0),  # ties go to the lowest class
        ([1.0, 1.0, 1.0], 0, 0.0, 1),  # which is never the label
        ([0.0, -0.0, -1.0], 2, -1.0, 0),  # -0 and 0 tie
        ([-math.inf, 0.0, -math.inf], 1, math.inf, 0),  # masked classes
        ([0.0, -math.inf, -math.inf], 0, math.inf, 1),
        ([-math.inf, -math.inf, 0.0], 0, -math.inf, 2),
        ([-math.inf, -math.inf], 0, math.nan, 1),
        ([math.inf, math.inf, 0.0], 0, math.nan, 1),
        ([0.0, math.nan, 1.0], 0, math.nan, 1),  # NaN wins, so that it shows
        ([math.nan, 0.0, 1.0], 0, math.nan, 2),
    ],
)
def test_one_sample(backend, logits, target, gap, runner_up):
    found = backend.ops.logit_gap(
        backend.place(torch.tensor([logits])), backend.place(torch.tensor([target]))
    )
    torch.testing.assert_close(found.gap.cpu(), torch.tensor([gap]), equal_nan=True)
    assert found.runner_up.tolist() == [runner_up]


def test_ignored_samples():
    found = reference.logit_gap(torch.randn(3, 4), torch.tensor([0, -100, 3]))
    assert found.gap.isnan().tolist() == [False, True, False]
    assert found.runner_up[1] == -1
    found = reference.logit_gap(torch.randn(3, 4), torch.tensor([0, 2, 3]), ignore_index=2)
    assert found.gap.isnan().tolist() == [False, True, False]


def test_gap_to_a_chosen_class():
    nearest = torch.tensor([2, 0, 2, 2])
    found = reference.logit_gap(paper_oracles.LOGITS, paper_oracles.TARGET, nearest=nearest)
    assert found.gap.tolist() == pytest.approx([3.0, 1.0, 1.0, 0.2])
    assert torch.equal(found.runner_up, nearest)


def test_gradient_is_plus_one_and_minus_one():
    logits = paper_oracles.LOGITS.clone().requires_grad_()
    reference.logit_gap(logits, paper_oracles.TARGET).gap.sum().backward()
    expected = [[1, -1, 0], [0, 1, -1], [1, -1, 0], [-1, 1, 0]]
    assert logits.grad.tolist() == expected
