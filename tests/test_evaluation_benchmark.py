"""The comparison of attacks: what counts as broken, a suite's time, and when a goal is reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.evaluation import __main__ as command  # noqa: E402
from benchmarks.evaluation import instruments, page  # noqa: E402
from benchmarks.evaluation.instruments import Instrument  # noqa: E402

MARKS = "before\n{}\nafter\n"
EMPTY = MARKS.format(
    "\n".join(
        f"<!-- {mark}: {name} -->" for name in ("radius", "distances") for mark in ("begin", "end")
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
    page.write_tables({"cases": {"net/plain/l2": case}}, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"0.200 | {goals} |" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="no marks"):
        page.write_tables({"cases": {}}, path)


def test_a_missing_library_is_named() -> None:
    assert instruments.why_missing(instruments.OURS) is None
    told = instruments.why_missing("no-such-library")
    assert told is not None
    assert told.startswith("no-such-library is skipped")


class Line(nn.Module):
    """Class 1 where the first coordinate is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1)


def test_points_are_judged_and_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.tensor([[0.1, 0.0], [0.4, 0.0], [0.9, 0.0]])
    y = torch.tensor([0, 0, 0])  # the last one is misclassified
    calls = []

    def lies(model: nn.Module, x: Tensor, y: Tensor, *_: object) -> Tensor:
        calls.append(len(y))
        return torch.full_like(x, 0.6) * torch.tensor([1.0, 0.0])

    mine = Instrument("nearest", "mine", instruments.OURS, lies)
    monkeypatch.setattr(command, "RADIUS_ATTACKS", (mine,))
    monkeypatch.setattr(command, "DISTANCES", ())
    monkeypatch.setattr(command, "load_case", lambda *_: (Line(), x, y))
    monkeypatch.setattr(command.environment, "describe", lambda device: {})
    path, table = tmp_path / "out.json", tmp_path / "page.md"
    table.write_text(EMPTY)
    line = ["evaluation", "--data-dir", "x", "--out", str(path), "--page", str(table)]
    monkeypatch.setattr(sys, "argv", [*line, "--cases", "cifar_cnn/adversarial_2/l2"])
    command.main()
    kept = json.loads(path.read_text())["cases"]["cifar_cnn/adversarial_2/l2"]
    assert kept["correct"] == "110"
    # Radius 0.5: the first point lies at 0.5, the second at 0.2.
    assert kept["attacks"]["nearest"]["broken"] == "110"
    command.main()
    assert calls == [2]
    y[2] = 1
    with pytest.raises(SystemExit, match="another network or other images"):
        command.main()
