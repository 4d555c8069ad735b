"""Runs that are killed, at random and at each system call that writes: --resume ends alike."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training.small_images import MODELS, write_images

HERE = Path(__file__).parent
# Every call, and thirty runs, take about ten minutes.
ALL = os.environ.get("MARGIN_EXT_ALL_KILLS") == "1"
WORDS = (
    "--data", "images.npz", "--model", "small_models:with_dropout", "--tau", "1",
    "--batch-size", "16", "--epochs", "3", "--monitor-limit", "20", "--measure-limit", "8",
    "--attack-steps", "2", "--distance-steps", "3", "--fraction", "0.5", "--every", "3",
    "--crop", "1", "--threads", "1", "--device", "cpu",
)  # fmt: skip


class Runs:
    """The command in processes that can be killed."""

    def __init__(self, folder: Path) -> None:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("needs a C compiler, and Linux")
        library = folder / "kill_switch.so"
        source = HERE / "kill" / "kill_switch.c"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
        )
        write_images(folder / "images.npz")
        (folder / "small_models.py").write_text(MODELS)
        path = os.pathsep.join([*filter(None, sys.path), str(HERE.parents[1])])
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "kill" / "forks.py")],
            cwd=folder,
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, out: Path, *words: str, **run: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"words": ["train", "--out", str(out), *words], "folder": str(out), **run}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("kills"))
    yield made
    made.process.kill()
    made.process.communicate()


def content(out: Path) -> dict[str, Any]:
    """All that a finished run's folder holds, but for times and paths."""
    assert not list(out.glob(".*.tmp")), "leftovers of a killed writer"
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    report = json.loads((out / "report.json").read_text())
    for record in (*history, *state["history"]):
        record.pop("seconds", None)
    for name in ("digest", "seconds"):
        del state[name]
    for name in ("seconds_per_epoch", "key"):
        del report[name]
    return {
        "state": state,
        "history": history,
        "measured": json.loads((out / "measured.json").read_text()),
        "report": report,
        "settings": (out / "settings.toml").read_text().split("\n\n", 1)[1],
        "files": sorted(file.name for file in out.iterdir()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 (NaN)


def require_same(out: Path, whole: dict[str, Any], when: str) -> None:
    found = content(out)
    for part, value in whole.items():
        assert same(value, found[part]), f"{part} differ after a kill {when}"


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--save-every", "0")], ids=["epochs", "steps"])
def test_a_kill_at_each_call_that_writes(
    runs: Runs, tmp_path: Path, words: tuple[str, ...]
) -> None:
    counted = runs(tmp_path / "whole", *WORDS, *words)
    assert counted["status"] == 0
    whole = content(tmp_path / "whole")
    calls = counted["calls"]
    assert calls > 40
    for at in range(1, calls + 1, 1 if ALL else max(1, calls // 8)):
        out = tmp_path / f"killed_{at}"
        assert runs(out, *WORDS, *words, at=at)["status"] == -9
        assert runs(out, *WORDS, *words, "--resume")["status"] == 0
        require_same(out, whole, f"at call {at} of {calls}")
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_kill_while_another_run_is_removed(runs: Runs, tmp_path: Path) -> None:
    assert runs(tmp_path / "whole", *WORDS)["status"] == 0
    whole = content(tmp_path / "whole")
    assert runs(tmp_path / "old", *WORDS, "--seed", "5", "--tau", "2")["status"] == 0
    old = content(tmp_path / "old")
    # The lock, the marker, seven files, the marker again, and the first files of the new run.
    for at in range(1, 14, 1 if ALL else 3):
        out = tmp_path / f"killed_{at}"
        shutil.copytree(tmp_path / "old", out)
        assert runs(out, *WORDS, "--fresh", at=at)["status"] == -9
        begun = (out / ".removing").exists() or not (out / "checkpoint.pt").exists()
        assert runs(out, *WORDS, "--resume")["status"] == (0 if begun else 2)
        require_same(out, whole if begun else old, f"at call {at}")
        shutil.rmtree(out)


@pytest.mark.slow
def test_kills_at_random(runs: Runs, tmp_path: Path) -> None:
    assert runs(tmp_path / "whole", *WORDS)["status"] == 0
    whole = content(tmp_path / "whole")
    rng = random.Random(0)
    killed = 0
    for number in range(30 if ALL else 4):
        out = tmp_path / f"killed_{number}"
        words = (*WORDS, "--save-every", rng.choice(["0", "60"]))
        # Killed up to three times before it may end.
        for _ in range(rng.randint(1, 3)):
            status = runs(out, *words, "--resume", after=rng.uniform(0, 0.8))["status"]
            killed += status == -9
        assert runs(out, *words, "--resume")["status"] == 0
        found = content(out)
        found["settings"] = found["settings"].replace("save_every = 0.0", "save_every = 60.0")
        found["report"]["settings"]["save_every"] = 60.0
        for part, value in whole.items():
            assert same(value, found[part]), f"{part} differ in run {number}"
        shutil.rmtree(out)
    assert killed > 0
