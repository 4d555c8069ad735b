"""The comparison of attacks: what counts as broken, a suite's time, and when a goal is reached."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.evaluation import __main__ as command  # noqa: E402
from benchmarks.evaluation import case_results, instruments, page  # noqa: E402
from benchmarks.evaluation.instruments import Instrument  # noqa: E402
from benchmarks.evaluation.targeted_gaps import targeted_gaps  # noqa: E402
from margin_ext.output.exclusive import exclusive  # noqa: E402
from margin_ext.output.json_file import write_json  # noqa: E402
from margin_ext.threat import ThreatModel  # noqa: E402

MARKS = "before\n{}\nafter\n"
EMPTY = MARKS.format(
    "\n".join(
        f"<!-- {mark}: {name} -->"
        for name in ("radius", "distances", "exact")
        for mark in ("begin", "end")
    )
)


def entry(**attacks: tuple[str, float]) -> dict[str, object]:
    return {
        "p": "l2",
        "eps": 2.0,
        "first": 0,
        "correct": "11110",
        "attacks": {
            name: {"broken": broken, "seconds": seconds, "version": "1"}
            for name, (broken, seconds) in attacks.items()
        },
        "distances": {},
    }


def test_a_suite_counts_its_earlier_parts() -> None:
    found = page.figures(
        entry(**{"apgd-ce": ("10000", 1.0), "apgd-t": ("01000", 2.0), "alma": ("00100", 4.0)})
    )
    assert found["apgd-ce"] == (0.6, 1.0)
    assert found["apgd-t"] == (0.4, 3.0)
    assert found["alma"] == (0.6, 4.0)


@pytest.mark.parametrize(
    ("broken", "seconds", "goals"),
    [("11100", 2.0, "yes | yes"), ("11100", 3.5, "yes | no"), ("11000", 0.5, "no: 20.0 | yes")],
)
def test_goals(broken: str, seconds: float, goals: str, tmp_path: Path) -> None:
    """Peers: 0.2 after 3 s together; a peer alone that is no better does not count as a rival."""
    case = entry(nearest=(broken, seconds), **{"apgd-ce": ("11000", 1.0), "apgd-t": ("00100", 2.0)})
    path = tmp_path / "page.md"
    path.write_text(EMPTY)
    page.write_tables({"net/plain/l2": case}, None, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"0.200 | {goals} |" in text


def test_a_case_without_peers_reaches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(EMPTY)
    page.write_tables({"net/plain/l2": entry(nearest=("11000", 1.0))}, None, path)
    assert "| net/plain, 2 | 0.400 (1 s) | not run | not run | not run |" in path.read_text()


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="no marks"):
        page.write_tables({}, None, path)


def test_a_missing_library_is_named() -> None:
    assert instruments.why_missing(instruments.OURS) is None
    told = instruments.why_missing("no-such-library")
    assert told is not None
    assert told.startswith("no-such-library is skipped")


EXACT = {"exact": [1.0, 2.0], "minimum": {"distance": [1.0, 2.1], "seconds": 3.0}}


class Line(nn.Module):
    """Class 1 where the first coordinate is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1)


NAME = "cifar_cnn/adversarial_2/l2"
X = torch.tensor([[0.1, 0.0], [0.4, 0.0], [0.9, 0.0]])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The command on three samples, with two parts of a suite that move all to (0.6, 0)."""
    calls: list[tuple[str, int]] = []

    def moved(name: str, model: nn.Module, x: Tensor, y: Tensor, *_: object) -> Tensor:
        calls.append((name, len(y)))
        return torch.full_like(x, 0.6) * torch.tensor([1.0, 0.0])

    attacks = tuple(
        Instrument(name, name, instruments.OURS, partial(moved, name), after=after)
        for name, after in (("nearest", ()), ("apgd-ce", ()), ("apgd-t", ("apgd-ce",)))
    )
    distance = Instrument("minimum", "ours", instruments.OURS, partial(moved, "minimum"))
    for module in (command, case_results):
        monkeypatch.setattr(module, "RADIUS_ATTACKS", attacks)
    monkeypatch.setattr(command, "DISTANCES", (distance,))
    monkeypatch.setattr(command, "compare_with_exact", lambda path: write_json(path, EXACT))
    labels = torch.tensor([0, 0, 0])  # the last sample is misclassified
    monkeypatch.setattr(command, "load_case", lambda *_: (Line(), X, labels))
    monkeypatch.setattr(case_results.environment, "describe", lambda device: {"commit": "1"})
    table = tmp_path / "page.md"
    table.write_text(EMPTY)
    line = ["evaluation", "--data-dir", "x", "--out", str(tmp_path), "--page", str(table)]

    def main(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", [*line, "--cases", NAME, *options])
        command.main()

    file = case_results.result_file(tmp_path, NAME)
    return SimpleNamespace(main=main, calls=calls, labels=labels, file=file, page=table)


def test_points_are_judged(run: SimpleNamespace) -> None:
    run.main()
    kept = json.loads(run.file.read_text())
    assert kept["correct"] == "110"
    # Radius 0.5: the first point lies at 0.5, the second at 0.2.
    assert kept["attacks"]["nearest"]["broken"] == "110"
    assert kept["distances"]["minimum"]["distance"] == [0.5, 0.2]
    assert {"seconds", "version", "commit"} < set(kept["attacks"]["nearest"])
    assert "cifar_cnn/adversarial_2, 0.5" in run.page.read_text()
    assert "| `MinimumDistance()` | 2 | 1.0250 | 50.0% | 1.05 | 3.0 |" in run.page.read_text()
    # Nothing is left for the second part of the suite.
    assert run.calls == [("nearest", 2), ("apgd-ce", 2), ("minimum", 2)]


def test_a_second_run_adds_what_is_missing(run: SimpleNamespace) -> None:
    run.main("--attacks", "nearest", "--distances")
    assert run.calls == [("nearest", 2)]
    run.main("--attacks", "nearest", "apgd-t", "--distances")  # apgd-t waits for apgd-ce
    assert run.calls == [("nearest", 2)]
    run.main()
    assert run.calls == [("nearest", 2), ("apgd-ce", 2), ("minimum", 2)]
    run.main()
    assert len(run.calls) == 3


def test_again_forgets_what_rests_on_it(run: SimpleNamespace) -> None:
    run.main()
    run.calls.clear()
    run.main("--again", "--attacks", "apgd-ce", "--distances")
    kept = json.loads(run.file.read_text())
    assert run.calls == [("apgd-ce", 2)]
    assert set(kept["attacks"]) == {"nearest", "apgd-ce"}
    assert set(kept["distances"]) == {"minimum"}


def test_a_case_is_left_to_the_run_that_is_at_it(
    run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(run.file):
        run.main()
    assert not run.calls
    assert f"{NAME}: left to the run that is at it" in capsys.readouterr().out


def test_results_of_another_network_are_refused(run: SimpleNamespace) -> None:
    run.main()
    run.labels[2] = 1
    with pytest.raises(SystemExit, match="another network or other images"):
        run.main()


def test_the_plain_attack_breaks_a_line() -> None:
    threat = ThreatModel(p=2, data_range=(0.0, 1.0))
    y = torch.tensor([0, 0])
    found = targeted_gaps(Line().requires_grad_(False), X[:2], y, threat, 0.3)
    assert Line()(found).argmax(1).tolist() == [0, 1]
    assert threat.distance(found, X[:2])[1] <= 0.3 + 1e-6
