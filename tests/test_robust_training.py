"""The comparison of training methods: its rule of choice, its files, its tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
# Behind everything else, so that an installed package is not hidden by the one in the checkout.
sys.path.append(str(ROOT))

from benchmarks.robust_training import epoch_timing, figures, goals, page, runs  # noqa: E402
from benchmarks.robust_training.choice import chosen_setting  # noqa: E402
from benchmarks.robust_training.evaluate_network import Suite  # noqa: E402
from benchmarks.robust_training.methods import METHODS, REFERENCE  # noqa: E402
from benchmarks.robust_training.objectives import InputGradientPenalty  # noqa: E402
from benchmarks.robust_training.problems import PROBLEMS, Problem  # noqa: E402
from benchmarks.robust_training.rows import rows_of  # noqa: E402
from benchmarks.robust_training.samples import (  # noqa: E402
    bits,
    numbers,
    read_bits,
    read_numbers,
)
from benchmarks.robust_training.strong_attacks import DecayingPGD  # noqa: E402
from benchmarks.robust_training.tables import table  # noqa: E402
from margin_ext.bounds import MinimumDistance  # noqa: E402
from margin_ext.data import DataSource, data_source, register_data_source  # noqa: E402
from margin_ext.data.image_data import ImageData  # noqa: E402
from margin_ext.functional import linear_margin  # noqa: E402
from margin_ext.measurement import robust_accuracy  # noqa: E402
from margin_ext.training import AdversarialTraining, Recipe  # noqa: E402

SIDE, CLASSES = 4, 3
RADII = (1.0, 1.25, 1.5)


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
    for setting in method.grid(RADII):
        model, x, y = batch()
        objective = method.objective(0.5, setting)
        loss = objective.loss(model, x, y)
        loss.backward()
        assert loss.isfinite()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        assert json.dumps(objective.settings())


def test_peers_are_tuned_as_much_as_margins():
    chosen = ["adversarial_1", "adversarial_2", "adversarial_7"]
    for problem in PROBLEMS.values():
        sizes = {key: len(method.grid(problem.radii)) for key, method in METHODS.items()}
        most = max(size for key, size in sizes.items() if METHODS[key].group != "peer")
        for key in chosen:
            assert sizes[key] == most
            tried = {setting["eps"] for setting in METHODS[key].grid(problem.radii)}
            assert {1.0, 1.25, 1.5} <= tried


# The rule of choice.


@pytest.fixture
def problem() -> Problem:
    recipe = Recipe(2, 20, 0.1)
    return Problem("tiny", "tiny", network, recipe, None, 0.4, allowed_loss=0.002, targets=2)


def tried(**attempts: list[tuple[float, float]]) -> dict:
    """For each method (accuracy, robust) of its settings in the order of the grid."""
    return {
        key: [
            {"setting": setting, "accuracy": accuracy, "robust": robust}
            for setting, (accuracy, robust) in zip(METHODS[key].grid(RADII), rows, strict=False)
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


@pytest.mark.parametrize("loss", ["gap", "cross_entropy"])
def test_decaying_steps_break_what_the_exact_distance_says(loss):
    torch.manual_seed(0)
    linear = nn.Linear(SIDE**2, CLASSES)
    model = nn.Sequential(nn.Flatten(), linear)
    # Far from the ends of the range, which then plays no part.
    x = 0.4 + 0.2 * torch.rand(60, 1, SIDE, SIDE)
    y = model(x).argmax(1)
    margin = linear_margin(linear.weight, linear.bias, x.flatten(1), y, p=2).detach()
    eps = float(margin.median())
    attack = DecayingPGD(loss=loss, steps=60)
    found = robust_accuracy(
        model, (x, y), eps, attacks=[attack], data_range=(0.0, 1.0), diagnose_masking=False
    )
    broken = np.isfinite(found.distance[attack.name])
    # The cross-entropy does not lead to the nearest class, the gap does.
    within = broken[(margin < 0.97 * eps).numpy()]
    assert within.all() if loss == "gap" else within.mean() > 0.5
    assert not broken[(margin > eps * (1 + 1e-4)).numpy()].any()


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture
def tiny(monkeypatch, problem):
    """Everything of the comparison on sixteen pixels, without the attack library."""

    class Tiny(DataSource):
        name, summary, place = "tiny", "sixteen pixels", "FOLDER"

        def load(self, place: str) -> ImageData:
            return ImageData("tiny", images(60, 0), images(30, 1), images(30, 2), CLASSES)

    monkeypatch.setattr(data_source, "_REGISTERED", dict(data_source.data_sources()))
    register_data_source(Tiny)
    monkeypatch.setitem(PROBLEMS, "tiny", problem)
    monkeypatch.setattr(epoch_timing, "ROUNDS", 2)
    search = MinimumDistance(steps=4, restarts=0, targets=0)
    return Suite(targets=0, count=12, last=(), steps=3, choice_steps=3, distance=search)


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
    trials = sum(len(METHODS[key].grid(RADII)) for key in METHODS_RUN)
    # The first seed of all four, the second of the three that have every seed, and the timing.
    assert len(told) == trials + 4 + 3 + 1
    content = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert set(content["runs"]) == {
        *(f"{key} 0" for key in METHODS_RUN),
        *(f"{key} 1" for key in METHODS_RUN[:3]),
    }
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


# Tables, goals and the figure from a file.


def run_with(
    robust: float, accuracy: float, seed: int = 0, distance: float = 2.0, found: bool = True
) -> dict:
    """A run on ten images, the first of which hold."""
    held = np.arange(10) < round(10 * robust)
    far = np.where(np.arange(10) == 0, distance if found else np.inf, distance)
    return {
        "setting": {},
        "accuracy": accuracy,
        "samples": {
            "correct": bits(np.ones(10, bool)),
            "distance": numbers(far),
            "margin": numbers(np.full(10, 3.0)),
            "worst": [bits(np.ones(10, bool)), bits(held)],
        },
    }


def results_with(runs_made: dict, seconds: dict) -> dict:
    settings = {name.split()[0]: run["setting"] for name, run in runs_made.items()}
    tuning = {
        key: [{"setting": settings[key], "accuracy": 0.98, "robust": 0.5}] for key in settings
    }
    return {
        "problem": {"title": "tiny", "eps": [0.2, 0.4], "aim": 0.4},
        "tuning": tuning,
        "runs": runs_made,
        "timing": {"settings": settings, "median": seconds},
    }


@pytest.fixture
def results() -> dict:
    made = {
        "plain 0": run_with(0.1, 0.985),
        f"{REFERENCE} 0": run_with(0.5, 0.98),
        f"{REFERENCE} 1": run_with(0.7, 0.978),
        "adversarial_2 0": run_with(0.5, 0.979),
        "secant 0": run_with(0.6, 0.981, found=False),
    }
    seconds = {"plain": 1.0, REFERENCE: 8.0, "adversarial_2": 3.0, "secant": 2.5}
    return results_with(made, seconds)


def test_rows_of_a_file(results):
    rows = rows_of(results)
    assert list(rows) == ["plain", REFERENCE, "adversarial_2", "secant"]
    seven, secant = rows[REFERENCE], rows["secant"]
    assert seven.seeds == [0, 1]
    assert seven.robust[1] == [0.5, 0.7]
    assert secant.not_found == 1
    assert secant.average_distance == 2.0
    assert secant.tangent_over_distance == pytest.approx(1.5)
    assert secant.time == 2.5
    # On the seed that both have: one image of ten more, paired.
    difference, error = secant.minus(seven)
    assert difference == pytest.approx(0.1)
    assert error == pytest.approx(np.std([1] + [0] * 9, ddof=1) / np.sqrt(10))
    assert secant.more_accurate_than(seven) == pytest.approx(0.001)


def test_time_of_another_setting_is_not_shown(results):
    results["timing"]["settings"]["secant"] = {"tau": 1.0}
    assert rows_of(results)["secant"].time is None


def test_the_table_names_what_was_not_run(results, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(results))
    made = table(path)
    assert made.count("\n|") == 2 + 4
    assert "| adversarial training, 7 steps | - | 2 | .9790 (.9780 to .9800) |" in made
    assert "**.600** (.500 to .700)" in made
    assert "+.100 ± .100" in made
    assert "2.00 / 2.00 (1)" in made
    missing = made.split("Not run yet: ")[1]
    assert METHODS["penalty"].title in missing
    assert METHODS["secant"].title not in missing
    assert "Not run yet" in table(tmp_path / "none.json")


def test_goals_are_marked_with_figures(results):
    assert goals.judge(rows_of(results)).startswith("**reached.** Secant margin")
    slow = json.loads(json.dumps(results))
    slow["timing"]["median"]["secant"] = 3.5
    assert goals.judge(rows_of(slow)).startswith("**not reached.**")
    inaccurate = json.loads(json.dumps(results))
    inaccurate["runs"]["secant 0"]["accuracy"] = 0.97
    assert "time 2.5 against 3.0" in goals.judge(rows_of(inaccurate))
    assert goals.judge(rows_of(inaccurate)).startswith("**not reached.**")
    accurate = json.loads(json.dumps(results))
    accurate["runs"]["secant 0"] = run_with(0.5, 0.991)
    assert goals.judge(rows_of(accurate)).startswith("**reached.**")
    assert goals.judge({}) == "**not measured yet.**"


def test_pages_are_written_between_their_marks(results, tmp_path):
    (tmp_path / "mnist_cnn.json").write_text(json.dumps(results))
    names = ["mnist_cnn", "goals", "headline", "sentences", "earlier"]
    marks = [f"<!-- made from docs/results: {name} -->\nold\n<!-- end -->" for name in names]
    made = page.made_anew("before\n" + "\n".join(marks) + "\nafter", tmp_path)
    assert "old" not in made
    assert made.startswith("before\n<!-- made")
    assert made.endswith("<!-- end -->\nafter")
    assert made.count("<!-- end -->") == 5
    assert "secant margin, 2 attack steps .600 at accuracy .981 in 2.5 times" in made
    assert "**reached.**" in made
    assert "not measured yet" in made
    assert page.made_anew(made, tmp_path) == made
    with pytest.raises(ValueError, match="'nothing'"):
        page.made_anew("<!-- made from docs/results: nothing -->\n<!-- end -->", tmp_path)


def test_the_pages_agree_with_the_results():
    for path in page.PAGES:
        if path.exists():
            text = path.read_text()
            assert page.made_anew(text) == text, "run python -m benchmarks.robust_training.page"


def test_the_figure_is_drawn_from_what_is_there(results, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: extra plot")
    (tmp_path / "mnist_cnn.json").write_text(json.dumps(results))
    drawn = figures.figure(tmp_path)
    assert len(drawn.axes) == 2
    assert drawn.axes[0].get_title(loc="left") == "tiny"


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
