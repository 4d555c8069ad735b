"""Comparisons that run, are stopped, and go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.robust_training import runs
from benchmarks.robust_training.choice import chosen_setting
from benchmarks.robust_training.evaluate_network import Suite
from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.problems import PROBLEMS
from benchmarks.robust_training.samples import (
    read_bits,
    read_numbers,
)
from margin_ext.training import AdversarialTraining
from robust_training.tiny_problem import TINY


class KilledError(Exception):
    """In place of a kill."""


METHODS_RUN = ["plain", REFERENCE, "adversarial_2", "first_order"]


def comparison(folder: Path, suite: Suite) -> runs.Comparison:
    return runs.Comparison("tiny", folder, folder / "out", folder / "work", suite)


def outcomes(folder: Path) -> dict:
    """What must not depend on interruptions: everything but times."""
    content = json.loads((folder / "out" / "tiny.json").read_text())
    for run in content["runs"].values():
        del run["cpu_seconds"], run["cpu_seconds_of_attacks"]
    for attempts in content["tuning"].values():
        for attempt in attempts:
            del attempt["cpu_seconds"]
    return {key: content[key] for key in ("tuning", "runs")}


def test_a_comparison_from_end_to_end(tiny, tmp_path):
    told: list[str] = []
    assert comparison(tmp_path, tiny).run(METHODS_RUN, [0, 1], told.append)
    trials = sum(len(METHODS[key].grid(TINY)) for key in METHODS_RUN)
    # Two seeds of all four, and the timing.
    assert len(told) == trials + 2 * 4 + 1
    content = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert set(content["runs"]) == {f"{key} {seed}" for key in METHODS_RUN for seed in (0, 1)}
    for name, run in content["runs"].items():
        chosen = chosen_setting(content["tuning"], name.split()[0], PROBLEMS["tiny"])
        assert run["setting"] == chosen
        samples = run["samples"]
        correct, worst = read_bits(samples["correct"]), [read_bits(w) for w in samples["worst"]]
        distance = read_numbers(samples["distance"])
        assert len(correct) == len(distance) == 12
        assert not (worst[0] & ~correct).any()
        assert not (worst[1] & ~worst[0]).any()
        assert not (worst[1] & (distance <= 0.4 - 1e-4)).any()
        assert (distance[~correct] == 0).all()

    told.clear()
    assert comparison(tmp_path, tiny).run(METHODS_RUN, [0, 1], told.append)
    assert told == []
    # A method that is new is timed with those that it is compared with.
    assert comparison(tmp_path, tiny).run(["penalty"], [0], told.append)
    sessions = json.loads((tmp_path / "out" / "tiny.json").read_text())["timing"]
    assert [set(session["settings"]) for session in sessions] == [
        set(METHODS_RUN),
        {"plain", REFERENCE, "adversarial_2", "penalty"},
    ]


def test_a_killed_comparison_goes_on_to_the_same_outcomes(tiny, tmp_path, monkeypatch):
    methods = ["plain", REFERENCE]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    comparison(whole, tiny).run(methods, [0, 1], lambda line: None, timing=False)

    steps = 0
    loss = AdversarialTraining.loss

    def dies(self, *given, **named):
        nonlocal steps
        steps += 1
        # In the second epoch of a training, whose steps are three an epoch.
        if steps in (5, 15):
            raise KilledError
        return loss(self, *given, **named)

    monkeypatch.setattr(AdversarialTraining, "loss", dies)
    kills = 0
    while True:
        try:
            comparison(killed, tiny).run(methods, [0, 1], lambda line: None, timing=False)
            break
        except KilledError:
            kills += 1
    assert kills == 2
    assert outcomes(killed) == outcomes(whole)


def test_a_limit_of_time_leaves_the_rest_for_later(tiny, tmp_path):
    told: list[str] = []
    calls = 1
    while not comparison(tmp_path, tiny).run(
        ["plain", REFERENCE], [0], told.append, timing=False, seconds=0
    ):
        calls += 1
    assert calls == len(told) == 1 + 3 + 2


def test_a_method_alone_cannot_be_chosen(tiny, tmp_path):
    with pytest.raises(ValueError, match="cannot be chosen yet"):
        comparison(tmp_path, tiny).run(["adversarial_2"], [0], lambda line: None)


def test_a_setting_that_diverges_is_never_chosen(tiny, tmp_path, monkeypatch):
    plain = AdversarialTraining.loss

    def diverges(self, *given, **named):
        loss = plain(self, *given, **named)
        return loss * float("nan") if self.eps > 0.45 else loss

    monkeypatch.setattr(AdversarialTraining, "loss", diverges)
    made = comparison(tmp_path, tiny)
    made.run(["plain", REFERENCE], [0], lambda line: None, timing=False)
    attempts = made.results["tuning"][REFERENCE]
    assert [("diverged" in one) for one in attempts] == [False, True, True]
    assert made.results["runs"][f"{REFERENCE} 0"]["setting"] == {"eps": 1.0}
