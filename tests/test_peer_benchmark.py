"""The comparison with other libraries: who is quicker at equal answers, and what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Behind everything else, so that an installed package is not hidden by the one in the checkout.
sys.path.append(str(ROOT))

from benchmarks import peer_tables, peers, report  # noqa: E402
from benchmarks.evaluation.instruments import OURS  # noqa: E402


def one(library, title, seconds, answers):
    return {
        "library": library,
        "version": "1",
        "title": title,
        "images": len(answers),
        "seconds": [seconds],
        "answers": answers,
    }


def rows(task, *contenders):
    case = {"network": "net", "title": "net", "task": task, "contenders": list(contenders)}
    page = "\n".join(peer_tables.peers({"cases": [case], "settings": {}}))
    return [line for line in page.splitlines() if line.startswith("| peer")], page


@pytest.mark.parametrize(
    ("nearest", "seconds", "goal"),
    [
        (([1.0, 2.0]), 1.0, "reached"),
        (([1.0, 2.0]), 9.0, "**behind**"),
        (([0.9, 2.0]), 1.0, "reached"),
        (([1.1, 2.0]), 1.0, "**other answers**"),
        (([None, 2.0]), 1.0, "**other answers**"),
    ],
)
def test_only_equal_or_nearer_answers_count(nearest, seconds, goal):
    (row,), page = rows(
        "distance", one("peer", "search", 4.0, [1.0, 2.0]), one(OURS, "ours", seconds, nearest)
    )
    assert row.endswith(f"{goal} |")
    assert f"Ahead at equal answers in {int(goal == 'reached')} of 1 rows." in page


def test_the_quickest_search_with_such_answers_is_shown():
    (row,), _ = rows(
        "distance",
        one(OURS, "careless", 0.5, [1.5, 2.5]),
        one(OURS, "good", 2.0, [1.0, 1.9]),
        one(OURS, "best", 3.0, [1.0, 1.8]),
        one("peer", "search", 4.0, [1.0, 2.0]),
    )
    assert "| good |" in row
    assert "| 2.00 x | mean 0.975, farther 0 %, nearer 50 % |" in row


def test_samples_on_which_the_peer_found_nothing_are_counted():
    (row,), _ = rows(
        "distance", one("peer", "search", 4.0, [None, 2.0]), one(OURS, "ours", 1.0, [1.0, 2.0])
    )
    assert "found none on 1 of 2" in row


def test_margins_must_be_equal():
    for margin, goal in ((2.000001, "reached"), (1.9, "**other answers**")):
        (row,), _ = rows(
            "margins", one(OURS, "ours", 1.0, [margin]), one("peer", "jacobian", 2.0, [2.0])
        )
        assert row.endswith(f"{goal} |")


def test_missing_libraries_are_named_and_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    asked = peers.why_missing

    def why_missing(library):
        return asked(library) if library in (OURS, "torch") else f"{library} is skipped: not here"

    monkeypatch.setattr(peers, "why_missing", why_missing)
    path = tmp_path / "machine_2000-01-01_peers.json"
    line = ["--quick", "--threads", "1", "--out", str(path), "--only", "steps=10,|margins|captum"]
    peers.main(line)
    out = capsys.readouterr().out
    assert "foolbox is skipped: not here" in out
    content = json.loads(path.read_text())
    assert [case["task"] for case in content["cases"]] == ["distance", "margins"]
    page = report.render(tmp_path, tmp_path).read_text()
    assert "### Other libraries" in page
    assert "torch: torch.func.jacrev" in page
    assert "captum: " not in page
