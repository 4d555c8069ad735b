"""The comparison of training methods: its peers, its rule for settings, its files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
# Behind everything else, so that an installed package is not hidden by the one in the checkout.
sys.path.append(str(ROOT))

from benchmarks.robust_training import evaluate_network, runs  # noqa: E402
from benchmarks.robust_training.methods import METHODS  # noqa: E402
from benchmarks.robust_training.objectives import InputGradientPenalty  # noqa: E402
from benchmarks.robust_training.problems import PROBLEMS, Problem, Tuning  # noqa: E402
from benchmarks.robust_training.tables import tables  # noqa: E402
from margin_ext.data import DataSource, data_source, register_data_source  # noqa: E402
from margin_ext.data.image_data import ImageData  # noqa: E402
from margin_ext.training import AdversarialTraining, Recipe  # noqa: E402

SIDE, CLASSES = 4, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.GELU(), nn.Linear(8, CLASSES))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    x[torch.arange(count), 0, labels] += 0.6
    return x, labels


def batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return network(), *images(6, seed=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_adversarial_training_minimises_the_loss_at_a_worse_point_of_the_ball(steps):
    model, x, y = batch()
    seen = []
    model.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    eps = 0.5
    loss = AdversarialTraining(eps, steps).loss(model, x, y)
    worst = seen[-1]
    assert len(seen) == steps + 1
    assert float((worst - x).flatten(1).norm(dim=1).max()) <= eps * (1 + 1e-5)
    assert float(worst.min()) >= 0
    assert float(worst.max()) <= 1
    assert loss > nn.functional.cross_entropy(model(x), y) * 1.01


def test_the_penalty_is_the_norm_of_the_gradient():
    model, x, y = batch()
    plain = InputGradientPenalty(0.0).loss(model, x, y)
    ours = InputGradientPenalty(2.0).loss(model, x, y)
    twin = x.clone().requires_grad_()
    each = nn.functional.cross_entropy(model(twin), y, reduction="none")
    (grad,) = torch.autograd.grad(each.sum(), twin)
    expected = 2 * grad.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(ours - plain, expected)
    ours.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("key", sorted(METHODS))
def test_every_method_has_a_loss_and_gradients_with_every_setting(key):
    method = METHODS[key]
    for setting in method.grid:
        model, x, y = batch()
        objective = method.objective(0.5, setting)
        loss = objective.loss(model, x, y)
        loss.backward()
        assert loss.isfinite()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        assert json.dumps(objective.settings())


def results_with(attempts: dict[str, list[tuple[float, float, float]]]) -> dict:
    """Of (eps, accuracy, robust)."""
    tuning = {
        key: [{"setting": {"eps": e}, "accuracy": a, "robust": r} for e, a, r in rows]
        for key, rows in attempts.items()
    }
    return {"tuning": {"plain": [{"setting": {}, "accuracy": 0.97, "robust": 0.1}], **tuning}}


def test_settings_are_chosen_by_robustness_among_those_that_keep_the_accuracy():
    rows = [(0.75, 0.975, 0.4), (1.0, 0.966, 0.5), (1.25, 0.95, 0.6)]
    results = results_with({"adversarial_1": rows})
    assert runs.chosen_setting(results, "adversarial_1", METHODS["adversarial_1"].grid) == {
        "eps": 1.0
    }


def test_where_none_keeps_it_the_most_accurate_is_chosen():
    rows = [(0.75, 0.93, 0.4), (1.0, 0.95, 0.3), (1.25, 0.9, 0.6)]
    results = results_with({"adversarial_1": rows})
    assert runs.chosen_setting(results, "adversarial_1", METHODS["adversarial_1"].grid) == {
        "eps": 1.0
    }


@pytest.fixture
def small_problem(monkeypatch):
    """Everything of the comparison on sixteen pixels."""

    class Tiny(DataSource):
        name, summary, place = "tiny", "sixteen pixels", "FOLDER"

        def load(self, place: str) -> ImageData:
            return ImageData("tiny", images(60, 0), images(30, 1), images(30, 2), CLASSES)

    monkeypatch.setattr(data_source, "_REGISTERED", dict(data_source.data_sources()))
    register_data_source(Tiny)
    problem = Problem(
        "tiny", "tiny", network, Recipe(2, 20, 0.1), None, Tuning(40, 1), (0.2, 0.4), 0.4, (0.05,)
    )
    monkeypatch.setitem(PROBLEMS, "tiny", problem)
    for name, value in (("STEPS", 3), ("RESTARTS", 1), ("ATTACKED", 20), ("MEASURED", 10)):
        monkeypatch.setattr(evaluate_network, name, value)
    # The attack library is an extra that the tests do without.
    monkeypatch.setattr(
        evaluate_network,
        "_library",
        lambda model, part, eps: {"eps": list(eps), "robust_accuracy": [0.0] * len(eps)},
    )
    return problem


def test_results_are_kept_and_not_made_twice(small_problem, tmp_path):
    methods = ["plain", "boundary", "orthogonality"]
    told: list[str] = []
    comparison = runs.Comparison("tiny", tmp_path, tmp_path / "out", tmp_path / "work")
    comparison.run(methods, [0, 1], told.append)
    tried = 1 + sum(len(METHODS[key].grid) for key in methods[1:])
    # The first seed of all three, the second of the headline's two.
    assert len(told) == tried + 3 + 2
    content = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert set(content["runs"]) == {
        "plain 0",
        "boundary 0",
        "orthogonality 0",
        "plain 1",
        "boundary 1",
    }
    assert content["runs"]["boundary 1"]["setting"] == runs.chosen_setting(
        content, "boundary", METHODS["boundary"].grid
    )
    assert 0 <= content["runs"]["plain 0"]["accuracy"] <= 1

    told.clear()
    again = runs.Comparison("tiny", tmp_path, tmp_path / "out", tmp_path / "work")
    again.run(methods, [0, 1], told.append)
    assert told == []
    table = tables(tmp_path / "out" / "tiny.json")
    assert METHODS["boundary"].title in table
    assert table.count("\n|") == 4 + 1


def test_narrowed_settings_are_those_of_methods():
    for problem in PROBLEMS.values():
        for key, settings in problem.narrowed.items():
            names = {frozenset(setting) for setting in METHODS[key].grid}
            assert {frozenset(setting) for setting in settings} <= names


def test_problems_name_their_aim_among_the_radii():
    for problem in PROBLEMS.values():
        assert problem.aim in problem.eps
        assert dataclasses.replace(problem.recipe, seed=1).epochs == problem.recipe.epochs
