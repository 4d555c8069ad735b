"""Tables, goals, pages and the figure from the raw results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.robust_training import cheaper_steps, figures, goals, over_training, page
from benchmarks.robust_training.methods import METHODS, REFERENCE
from benchmarks.robust_training.rows import rows_of
from benchmarks.robust_training.samples import (
    bits,
    numbers,
)
from benchmarks.robust_training.tables import table


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
        "timing": [{"settings": settings, "median": seconds}],
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
    assert secant.time_over(seven) == 2.5 / 8
    assert secant.sessions_with(seven) == [0]
    # On the seed that both have: one image of ten more, paired.
    difference, error = secant.minus(seven)
    assert difference == pytest.approx(0.1)
    assert error == pytest.approx(np.std([1] + [0] * 9, ddof=1) / np.sqrt(10))
    assert secant.more_accurate_than(seven) == pytest.approx(0.001)


def test_time_of_another_setting_is_not_shown(results):
    results["timing"][0]["settings"]["secant"] = {"tau": 1.0}
    assert rows_of(results)["secant"].time is None
    # What is timed later is over plain training in the same session.
    later = {"settings": {"plain": {}, "secant": {}}, "median": {"plain": 2.0, "secant": 6.0}}
    results["timing"].append(later)
    rows = rows_of(results)
    assert rows["secant"].time == 3.0
    assert rows[REFERENCE].time == 8.0
    # Of several sessions the median.
    for seconds in (4.0, 30.0):
        more = {
            "settings": {"plain": {}, "secant": {}},
            "median": {"plain": 1.0, "secant": seconds},
        }
        results["timing"].append(more)
    assert rows_of(results)["secant"].time == 4.0
    # Against another method only sessions with both count: here none.
    assert rows_of(results)["secant"].time_over(rows[REFERENCE]) is None


@pytest.mark.parametrize(
    ("tried", "end"),
    [((1.0,), ""), ((0.5, 1.0), "largest"), ((1.0, 2.0), "smallest"), ((0.5, 1.0, 2.0), "")],
)
def test_a_setting_at_an_end_of_its_grid_is_told(results, tmp_path, tried, end):
    results["runs"]["secant 0"]["setting"] = {"tau": 1.0}
    entry = results["tuning"]["secant"][0]
    results["tuning"]["secant"] = [{**entry, "setting": {"tau": tau}} for tau in tried]
    assert rows_of(results)["secant"].end_of_grid == end
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(results))
    assert ("| tau 1 " + (f"({end}) |" if end else "|")) in table(path)


def test_seeds_of_another_setting_are_no_seeds_of_a_row(results):
    results["runs"]["secant 1"] = {**results["runs"]["secant 0"], "setting": {"tau": 9.0}}
    assert rows_of(results)["secant"].seeds == [0]
    results["runs"]["secant 1"]["setting"] = results["runs"]["secant 0"]["setting"]
    assert rows_of(results)["secant"].seeds == [0, 1]


def test_the_table_names_what_was_not_run(results, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(results))
    made = table(path)
    assert made.count("\n|") == 2 + 4
    assert "| adversarial training, 7 steps | - | 2 | .9790 (.9780 to .9800) |" in made
    assert "**.600** (.500 to .700)" in made
    assert "+.100 ± .100" in made
    assert "2.00 / 2.00 (1)" in made
    # Over two steps' time, in how many sessions.
    assert "| 2.5 | 0.83 (1) |" in made
    assert "| 3.0 | - |" in made
    missing = made.split("Not run yet: ")[1]
    assert METHODS["penalty"].title in missing
    assert METHODS["secant"].title not in missing
    # What was trained and not attacked, because it learned nothing for instance, is no secret.
    results["tuning"]["penalty"] = [{"setting": {"weight": 3.0}, "accuracy": 0.1, "robust": 0.05}]
    path.write_text(json.dumps(results))
    validated, missing = table(path).split("Not run yet: ")
    assert METHODS["penalty"].title not in missing
    told = f"{METHODS['penalty'].title} (weight 3: .100 / .050)."
    assert f"Seen on validation images alone (accuracy / robust): {told}" in validated
    results["tuning"]["penalty"][0]["diverged"] = "in epoch 1"
    path.write_text(json.dumps(results))
    assert f"{METHODS['penalty'].title} (weight 3: diverged)." in table(path)
    assert "Not run yet" in table(tmp_path / "none.json")


def test_test_images_do_not_choose_the_margin_that_is_named(results):
    results["runs"]["own_length 0"] = run_with(0.4, 0.981)
    results["tuning"]["own_length"] = [{"setting": {}, "accuracy": 0.98, "robust": 0.51}]
    results["timing"][0]["settings"]["own_length"] = {}
    results["timing"][0]["median"]["own_length"] = 3.0
    told = goals.judge(rows_of(results))
    assert told.startswith("**not reached.** True margin")
    assert "Seen on the test images alone, this reaches it: Secant margin" in told
    # The most robust one on validation images takes too long: the next one is named.
    results["timing"][0]["median"]["own_length"] = 3.2
    assert goals.judge(rows_of(results)).startswith("**reached.** Secant margin")


def test_goals_are_marked_with_figures(results):
    assert goals.judge(rows_of(results)).startswith("**reached.** Secant margin")
    slow = json.loads(json.dumps(results))
    slow["timing"][0]["median"]["secant"] = 3.5
    assert goals.judge(rows_of(slow)).startswith("**not reached.**")
    inaccurate = json.loads(json.dumps(results))
    inaccurate["runs"]["secant 0"]["accuracy"] = 0.97
    assert "time 0.83 times that of 2 steps (1 session)" in goals.judge(rows_of(inaccurate))
    assert goals.judge(rows_of(inaccurate)).startswith("**not reached.**")
    assert "2 steps reach it" not in goals.judge(rows_of(results))
    easy = json.loads(json.dumps(results))
    easy["runs"]["adversarial_2 0"] = run_with(0.6, 0.981)
    assert "2 steps reach it themselves: Adversarial training, 2" in goals.judge(rows_of(easy))
    accurate = json.loads(json.dumps(results))
    accurate["runs"]["secant 0"] = run_with(0.5, 0.991)
    assert goals.judge(rows_of(accurate)).startswith("**reached.**")
    assert goals.judge({}) == "**not measured yet.**"
    less = json.loads(json.dumps(inaccurate))
    less["runs"]["adversarial_7_radius 0"] = run_with(0.5, 0.965)
    less["tuning"]["adversarial_7_radius"] = less["tuning"][REFERENCE]
    told = goals.judge(rows_of(less)).split("Against 7 steps at the radius itself: ")
    assert told[0].startswith("**not reached.**")
    assert told[1].startswith("**reached.** Secant margin")


def test_pages_are_written_between_their_marks(results, tmp_path):
    (tmp_path / "mnist_cnn.json").write_text(json.dumps(results))
    names = ["mnist_cnn", "goals", "headline", "earlier"]
    marks = [f"<!-- made from docs/results: {name} -->\nold\n<!-- end -->" for name in names]
    made = page.made_anew("before\n" + "\n".join(marks) + "\nafter", tmp_path)
    assert "old" not in made
    assert made.startswith("before\n<!-- made")
    assert made.endswith("<!-- end -->\nafter")
    assert made.count("<!-- end -->") == 4
    assert "| secant margin, 2 attack steps | **.600** · .981 · 2.5 (1 seed) |" in made
    assert "**reached.**" in made
    assert "not measured yet" in made
    assert page.made_anew(made, tmp_path) == made
    with pytest.raises(ValueError, match="'nothing'"):
        page.made_anew("<!-- made from docs/results: nothing -->\n<!-- end -->", tmp_path)


def test_what_cheaper_steps_cost(tmp_path):
    path = tmp_path / "cheaper_steps.json"
    assert cheaper_steps.cheaper_steps_table(path) == "Not run yet."
    runs = {
        "distance, all samples in every step": {"held": "1111011111", "cpu_seconds": 20.0},
        "distance, `every=2`": {"held": "1111011110", "cpu_seconds": 15.0},
    }
    for run in runs.values():
        run["accuracy"] = 0.98
    path.write_text(json.dumps({"runs": runs}))
    made = cheaper_steps.cheaper_steps_table(path)
    assert "| distance | all samples in every step | .9800 | .900 | - | 1.00 |" in made
    assert "| distance | `every=2` | .9800 | .800 | -.100 ± .100 | 0.75 |" in made


def test_margins_over_training_are_told_for_both_parts(tmp_path):
    path = tmp_path / "margins_over_training.json"
    assert over_training.over_training_table(path) == "Not run yet."
    words = ["accuracy", *dict(over_training.ROWS)]
    first, last = ({split: dict.fromkeys(words, n) for split in ("train", "test")} for n in (0, 1))
    last["test"] = dict.fromkeys(words, 0.5)
    path.write_text(json.dumps({"runs": {"mlp plain": {"history": [first, last]}}}))
    made = over_training.over_training_table(path)
    row = "| MLP 784-1024-10, ReLU: cross-entropy | 1.000 / 0.500 | 1.00 / 0.50 |"
    assert row in made
    assert made.count("\n") == 2


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
    assert drawn.axes[0].get_title(loc="left").startswith("tiny: test images")
