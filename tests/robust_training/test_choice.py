"""The rule by which settings are chosen, and the outcomes of single images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.robust_training import page
from benchmarks.robust_training.choice import chosen_setting
from benchmarks.robust_training.evaluate_network import Suite
from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.samples import (
    bits,
    numbers,
    read_bits,
    read_numbers,
)
from benchmarks.robust_training.shrinking_pgd import ShrinkingPGD, into_ball
from benchmarks.robust_training.strong_attacks import DecayingPGD
from margin_ext.functional import linear_margin
from margin_ext.measurement import robust_accuracy
from margin_ext.threat import ThreatModel
from robust_training.tiny_problem import CLASSES, SIDE, TINY


def tried(**attempts: list[tuple[float, float]]) -> dict:
    """For each method (accuracy, robust) of its settings in the order of the grid."""
    return {
        key: [
            {"setting": setting, "accuracy": accuracy, "robust": robust}
            for setting, (accuracy, robust) in zip(METHODS[key].grid(TINY), rows, strict=False)
        ]
        for key, rows in attempts.items()
    }


PLAIN = {"plain": [(0.985, 0.1)]}
SEVEN = {REFERENCE: [(0.98, 0.60), (0.976, 0.62), (0.96, 0.64)]}


def test_seven_steps_may_lose_a_point_of_accuracy(problem):
    tuning = tried(**PLAIN, **SEVEN)
    assert chosen_setting(tuning, REFERENCE, problem) == {"eps": 1.25}
    assert chosen_setting(tuning, "plain", problem) == {}


def test_others_are_chosen_at_the_accuracy_of_seven_steps(problem):
    rows = [(0.979, 0.4), (0.9745, 0.5), (0.9735, 0.6)]
    tuning = tried(**PLAIN, **SEVEN, adversarial_2=rows)
    assert chosen_setting(tuning, "adversarial_2", problem) == {"eps": 1.25}
    lenient = dataclasses.replace(problem, allowed_loss=0.003)
    assert chosen_setting(tuning, "adversarial_2", lenient) == {"eps": 1.5}


def test_where_none_is_accurate_enough_the_most_accurate_is_chosen(problem):
    rows = [(0.93, 0.4), (0.95, 0.3), (0.9, 0.6)]
    tuning = tried(**PLAIN, **SEVEN, adversarial_2=rows)
    assert chosen_setting(tuning, "adversarial_2", problem) == {"eps": 1.25}


def test_of_equally_robust_settings_the_first_is_chosen(problem):
    tuning = tried(**PLAIN, **SEVEN, adversarial_2=[(0.979, 0.5)] * 3)
    assert chosen_setting(tuning, "adversarial_2", problem) == {"eps": 1.0}


@pytest.mark.parametrize("missing", ["own", "plain", "seven"])
def test_nothing_is_chosen_before_all_is_tried(problem, missing):
    own = [(0.98, 0.5)] * (2 if missing == "own" else 3)
    seven = {REFERENCE: SEVEN[REFERENCE][:2]} if missing == "seven" else SEVEN
    plain = {} if missing == "plain" else PLAIN
    tuning = tried(**plain, **seven, adversarial_2=own)
    assert chosen_setting(tuning, "adversarial_2", problem) is None


# Attacks and files.


def test_outcomes_are_written_and_read_back():
    held = np.array([True, False, True])
    assert (read_bits(bits(held)) == held).all()
    distance = np.array([0.0, 1.25, np.inf])
    assert (read_numbers(numbers(distance)) == distance).all()


@pytest.mark.parametrize(
    "attack",
    [
        DecayingPGD(steps=60),
        DecayingPGD(loss="cross_entropy", steps=60),
        ShrinkingPGD(restarts=3, targets=1, near=1.0),
    ],
    ids=["gap", "cross_entropy", "shrinking"],
)
def test_attacks_break_what_the_exact_distance_says(attack):
    torch.manual_seed(0)
    linear = nn.Linear(SIDE**2, CLASSES)
    model = nn.Sequential(nn.Flatten(), linear)
    # Far from the ends of the range, which then plays no part.
    x = 0.4 + 0.2 * torch.rand(60, 1, SIDE, SIDE)
    y = model(x).argmax(1)
    margin = linear_margin(linear.weight, linear.bias, x.flatten(1), y, p=2).detach()
    eps = float(margin.median())
    found = robust_accuracy(
        model, (x, y), eps, attacks=[attack], data_range=(0.0, 1.0), diagnose_masking=False
    )
    broken = np.isfinite(found.distance[attack.name])
    # The cross-entropy does not lead to the nearest class, the gap does.
    within = broken[(margin < 0.97 * eps).numpy()]
    assert within.mean() > 0.5 if "cross_entropy" in attack.name else within.all()
    assert not broken[(margin > eps * (1 + 1e-4)).numpy()].any()


def test_points_of_a_ball_in_a_range_are_the_nearest_ones():
    """Against a bisection for the factor of the offset, whose clipped length is the radius."""
    torch.manual_seed(1)
    center = torch.rand(50, 20, dtype=torch.float64)
    x = center + 2 * torch.randn_like(center)
    bounds = center.new_zeros(()), center.new_ones(())
    found = into_ball(x, center, 0.8, bounds)
    low, high = torch.zeros(50, 1, dtype=torch.float64), torch.ones(50, 1, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        inside = ((center + middle * (x - center)).clamp(0, 1) - center).norm(dim=1) < 0.8
        low, high = (
            torch.where(inside.unsqueeze(1), middle, low),
            torch.where(inside.unsqueeze(1), high, middle),
        )
    torch.testing.assert_close(found, (center + low * (x - center)).clamp(0, 1))
    torch.testing.assert_close(into_ball(found, center, 0.8, bounds), found)
    assert torch.equal(into_ball(center, center, 0.8, bounds), center)


def test_the_shrinking_ball_is_refused_in_other_norms():
    with pytest.raises(ValueError, match="p = 2"):
        ShrinkingPGD().check(ThreatModel(p=float("inf")))


def test_stored_results_come_from_one_suite():
    """Every network met every attack with the settings of now."""
    for name in PROBLEMS:
        path = page.RESULTS / f"{name}.json"
        for run, found in json.loads(path.read_text())["runs"].items() if path.exists() else ():
            for attack in Suite(targets=0).last:
                settings = json.loads(json.dumps(attack.settings()))
                assert found["settings"].get(attack.name) == settings, f"{name}: {run}"


def test_stored_settings_follow_the_rule():
    """Every network that was attacked has the setting that the rule chooses."""
    for name, known in PROBLEMS.items():
        path = page.RESULTS / f"{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        for run, found in content["runs"].items():
            key = run.rsplit(" ", 1)[0]
            assert found["setting"] == chosen_setting(content["tuning"], key, known), run
