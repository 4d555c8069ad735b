"""``margin-ext demo`` as a user runs it, small."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training.idx_files import write_mnist

from margin_ext.command_line import main
from margin_ext.measurement.monitor import read_history

# Where the tests run in the background of a shell, programs start with SIGINT ignored.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from margin_ext.command_line import main
sys.exit(main(sys.argv[1:]))
"""

KEYS = ("plain", "logit_gap", "first_order")


def demo(out: Path, *options: str) -> int:
    return main(["demo", "--quick", "--out", str(out), *options])


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "demo", "--quick", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(out: Path, key: str) -> dict[str, torch.Tensor]:
    return torch.load(out / key / "checkpoint.pt", weights_only=True)["model_state_dict"]


def wait_for_epochs(out: Path, key: str, epochs: int) -> None:
    path = out / key / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and torch.load(path, weights_only=True)["epoch"] >= epochs:
            return
        time.sleep(0.02)
    pytest.fail(f"{key} did not come to epoch {epochs}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    torch.set_num_threads(1)
    assert demo(out) == 0
    return out


def test_the_report_has_everything(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["complete"]
    assert report["data"]["train"] == 200
    assert report["environment"]["torch"] == torch.__version__
    assert [training["key"] for training in report["trainings"]] == list(KEYS)
    eps = report["evaluation"]["eps_attack"]
    assert eps == sorted(eps)
    for training in report["trainings"]:
        assert training["epochs"] == report["recipe"]["epochs"] == 3
        assert training["seconds_per_epoch"] > 0
        for split in ("train", "held_out"):
            totals = training[split]
            assert 0 <= totals["accuracy"] <= 1
            assert totals["minimum_margin"] <= totals["median_margin"]
            assert totals["minimum_margin"] <= totals["average_margin"]
        assert training["held_out"]["attack_distance"]["average"] >= 0
        robust = training["robust_accuracy"]
        for attack in ("gap", "cross_entropy", "worst"):
            curve = robust["robust_accuracy"][attack]
            assert len(curve) == len(eps)
            assert [robust["accuracy"], *curve] == sorted(
                [robust["accuracy"], *curve], reverse=True
            )
        assert 0 <= robust["diagnosis"]["cross_entropy_underflow"] <= 1
        assert (finished / training["checkpoint"]).is_file()
        assert (finished / training["history"]).is_file()


def test_all_start_from_the_same_weights_and_end_elsewhere(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert len({training["initial_weights"] for training in report["trainings"]}) == 1
    # Epoch 0 of the history is the untrained network: the same figures for all.
    untrained = [read_history(finished / key / "history.jsonl")[0] for key in KEYS]
    assert untrained[0]["epoch"] == 0
    assert untrained[0] == untrained[1] == untrained[2]
    ends = [weights(finished, key) for key in KEYS]
    name = next(iter(ends[0]))
    assert not torch.equal(ends[0][name], ends[1][name])
    assert not torch.equal(ends[0][name], ends[2][name])


def test_history_has_every_epoch(finished: Path) -> None:
    for key in KEYS:
        records = read_history(finished / key / "history.jsonl")
        for split in ("train", "held_out"):
            assert [r["epoch"] for r in records if r["split"] == split] == [0, 1, 2, 3]


def test_the_figure_is_a_picture(finished: Path) -> None:
    from matplotlib.image import imread

    picture = imread(finished / "figure.png")
    assert picture.shape[0] > 800
    assert picture.shape[1] > 1000
    assert len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3).tolist()}) > 20


def test_again_computes_nothing_and_says_the_same(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*")}
    table = (finished / "report.txt").read_text()
    assert demo(finished) == 0
    shown = capsys.readouterr()
    assert table in shown.out
    assert shown.err.count("done before") == 3
    for name in ("checkpoint.pt", "measured.json"):
        for path in finished.glob(f"*/{name}"):
            assert path.stat().st_mtime_ns == before[path]


def test_the_same_seed_gives_the_same_and_another_another(finished: Path, tmp_path: Path) -> None:
    assert demo(tmp_path / "same") == 0
    for key in KEYS:
        for name, tensor in weights(finished, key).items():
            assert torch.equal(tensor, weights(tmp_path / "same", key)[name])
        measured = (finished / key / "measured.json").read_text()
        assert (tmp_path / "same" / key / "measured.json").read_text() == measured


def test_another_run_in_the_same_folder_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(finished, "--seed", "1") == 2
    said = capsys.readouterr().err
    assert "other settings" in said
    assert "seed: 0 there, 1 here" in said
    assert "--fresh" in said


def test_fresh_starts_over(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "fresh"
    assert demo(out, "--epochs", "1") == 0
    (out / "notes.txt").write_text("mine")
    assert demo(out, "--epochs", "2", "--fresh") == 0
    assert json.loads((out / "report.json").read_text())["recipe"]["epochs"] == 2
    assert (out / "notes.txt").read_text() == "mine"


def test_killed_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = ("--epochs", "12")
    process = start(tmp_path / "killed", *options)
    try:
        wait_for_epochs(tmp_path / "killed", "logit_gap", 2)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "killed" / "report.json").exists()
    assert demo(tmp_path / "killed", *options) == 0
    assert demo(tmp_path / "whole", *options) == 0
    for key in KEYS:
        for name, tensor in weights(tmp_path / "whole", key).items():
            assert torch.equal(tensor, weights(tmp_path / "killed", key)[name])
    reports = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")
    ]
    for report in reports:
        for training in report["trainings"]:
            del training["seconds_per_epoch"]
    assert reports[0] == reports[1]


def test_ctrl_c_leaves_a_table_and_a_figure(tmp_path: Path) -> None:
    process = start(tmp_path, "--epochs", "2000")
    try:
        wait_for_epochs(tmp_path, "plain", 2)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "the same command goes on" in said
    assert "Not finished" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["complete"]
    plain, *others = report["trainings"]
    assert plain["epochs"] >= 2
    assert math.isfinite(plain["train"]["average_margin"])
    assert plain["robust_accuracy"] is None
    assert all(other["epochs"] == 0 and other["train"] is None for other in others)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_mnist_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path, train=60, test=30)
    assert demo(tmp_path / "out", "--data-dir", str(tmp_path), "--threads", "1") == 0
    assert "MNIST" in capsys.readouterr().out
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-100])
    assert demo(tmp_path / "out", "--data-dir", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "damaged" in said
    assert images.name in said
    assert demo(tmp_path / "out", "--data-dir", str(tmp_path / "nowhere")) == 2
    assert "must hold MNIST" in capsys.readouterr().err


def test_without_matplotlib_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert demo(tmp_path, "--epochs", "1") == 0
    assert "pip install 'margin_ext[plot]'" in capsys.readouterr().err
    assert (tmp_path / "report.json").is_file()
    assert not (tmp_path / "figure.png").exists()
