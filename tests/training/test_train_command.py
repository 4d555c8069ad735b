"""``margin-ext train`` as a user runs it, small."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from margin_ext.measurement.monitor import read_history
from margin_ext.training.setting_table import OPTIONS
from training.small_images import SMALL, checkpoint, same_weights, train, weights, write_images

# Everything random that a training can have: dropout, a part of each batch, shifted and mirrored
# images; and a count that goes over the epochs' ends, since an epoch has 4 steps.
RANDOM = (*SMALL, "--fraction", "0.5", "--every", "3", "--crop", "1", "--flip")


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(image_folder)
        patch.syspath_prepend(str(image_folder))
        assert train(out, *RANDOM) == 0
    return out


def test_the_folder_has_everything(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["complete"]
    assert report["epochs"] == 4
    assert 0 <= report["accuracy"] <= 1
    assert report["settings"]["fraction"] == 0.5
    assert report["environment"]["torch"] == torch.__version__
    totals = report["held_out"]
    assert totals["count"] == 12
    assert totals["minimum_margin"] <= totals["average_margin"]
    assert totals["attack_distance"]["average"] >= 0
    assert report["robust_accuracy"]["eps"] == report["settings"]["eps_attack"]
    for attack in ("gap", "cross_entropy"):
        assert len(report["robust_accuracy"]["robust_accuracy"][attack]) == 3
    assert (finished / report["checkpoint"]).is_file()
    table = (finished / "report.txt").read_text()
    assert "average attack distance, test" in table
    assert "3-step PGD" in table
    assert f"Accuracy on all 20 test images: {report['accuracy']:.4f}." in table
    assert (finished / "figure.png").stat().st_size > 10_000


def test_the_history_has_margins_loss_and_seconds_of_every_epoch(finished: Path) -> None:
    records = read_history(finished / "history.jsonl")
    for split in ("train", "held_out"):
        own = [record for record in records if record["split"] == split]
        assert [record["epoch"] for record in own] == [0, 1, 2, 3, 4]
        assert all(record["minimum_margin"] <= record["average_margin"] for record in own)
        assert all(0 <= record["accuracy"] <= 1 for record in own)
    trained = [r for r in records if r["split"] == "train" and r["epoch"] > 0]
    assert [record["loss"] for record in trained] == checkpoint(finished)["losses"]
    assert all(record["seconds"] > 0 for record in trained)


def test_settings_toml_repeats_the_run(finished: Path, here: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert train(again, "--config", str(finished / "settings.toml")) == 0
    assert same_weights(finished, again)
    assert (again / "measured.json").read_text() == (finished / "measured.json").read_text()
    settings = [
        (out / "settings.toml").read_text().split("\n\n", 1)[1] for out in (finished, again)
    ]
    assert settings[0] == settings[1]


def test_another_seed_is_another_run(finished: Path, here: Path, tmp_path: Path) -> None:
    config = str(finished / "settings.toml")
    assert train(tmp_path / "other", "--config", config, "--seed", "1", "--no-report") == 0
    assert not same_weights(finished, tmp_path / "other")


def test_killed_it_goes_on_bit_for_bit(finished: Path, here: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    # Slowed down after its second epoch, so that the kill comes in the third.
    program = (
        "import sys, time\n"
        "from margin_ext.training.training_loop import TrainingLoop\n"
        "step = TrainingLoop._step\n"
        "def slow(self, *rest):\n"
        "    time.sleep(600 if self.epoch == 2 and self.optimizer.state else 0)\n"
        "    return step(self, *rest)\n"
        "TrainingLoop._step = slow\n"
        "from margin_ext.command_line import main\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", "--out", str(out), *RANDOM, "--threads", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not ((out / "checkpoint.pt").exists() and checkpoint(out)["epoch"] == 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (out / "report.json").exists()
    # Its settings are in its folder.
    assert train(out, "--resume") == 0
    assert same_weights(finished, out)
    assert checkpoint(out)["losses"] == checkpoint(finished)["losses"]
    assert (out / "measured.json").read_text() == (finished / "measured.json").read_text()


def test_a_run_is_not_overwritten_by_mistake(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, *SMALL, "--epochs", "1", "--no-report") == 0
    (out / "notes.txt").write_text("mine")
    before = weights(out)
    capsys.readouterr()
    assert train(out, *SMALL, "--epochs", "1", "--seed", "1") == 2
    said = capsys.readouterr().err
    assert "--resume" in said
    assert "--fresh" in said
    # A run that cannot begin removes nothing.
    assert train(out, "--data", "mnist", "--data-dir", "nowhere", "--fresh") == 2
    assert torch.equal(weights(out)["1.weight"], before["1.weight"])
    assert train(out, *SMALL, "--epochs", "1", "--seed", "1", "--fresh", "--no-report") == 0
    assert not torch.equal(weights(out)["1.weight"], before["1.weight"])
    assert (out / "notes.txt").read_text() == "mine"
    assert len(read_history(out / "history.jsonl")) == 4


def test_resume_of_nothing_begins_nothing(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "mistyped", "--resume") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()


def test_resume_of_a_finished_run_computes_what_is_asked_for_anew(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, *SMALL, "--resume") == 0
    kept = {name: (out / name).stat().st_mtime_ns for name in ("checkpoint.pt", "measured.json")}
    capsys.readouterr()
    assert train(out, "--resume") == 0
    shown = capsys.readouterr()
    assert "4 epochs, 4 done before" in shown.err
    assert "measuring" not in shown.err
    assert (out / "report.txt").read_text() in shown.out
    for name, when in kept.items():
        assert (out / name).stat().st_mtime_ns == when
    # How it is measured does not touch the weights.
    assert train(out, "--resume", "--eps-attack", "0.2", "0.1") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["robust_accuracy"]["eps"] == [0.1, 0.2]
    assert (out / "checkpoint.pt").stat().st_mtime_ns == kept["checkpoint.pt"]


def test_resume_refuses_other_settings_and_other_data(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, *SMALL, "--no-report") == 0
    settings = (out / "settings.toml").read_text()
    assert train(out, "--resume", "--mu", "2", "--seed", "9") == 2
    said = capsys.readouterr().err
    assert "seed: 0 there, 9 here" in said
    assert "mu: 1.0 there, 2.0 here" in said
    assert "criterion" not in said  # which would say mu once more
    write_images(tmp_path / "other.npz", train_target=torch.arange(60).remainder(3).numpy())
    assert train(out, "--resume", "--data-dir", str(tmp_path / "other.npz")) == 2
    assert "images:" in capsys.readouterr().err
    assert (out / "settings.toml").read_text() == settings
    # The same images in another place are the same.
    write_images(tmp_path / "same.npz")
    assert train(out, "--resume", "--data-dir", str(tmp_path / "same.npz")) == 0


def test_a_loss_that_is_not_finite(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--learning-rate", "1e25", "--momentum", "0", "--schedule", "constant")
    assert train(tmp_path, *SMALL, *words, "--no-monitor") == 2
    said = capsys.readouterr().err
    assert "the loss is no longer finite in epoch 1, step" in said
    assert "checkpoint.pt keeps the state after epoch 0" in said
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path).values())
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["complete"]
    assert report["accuracy"] is None


def test_a_full_disk_leaves_the_old_checkpoint(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Files may not grow beyond what the checkpoint of the first epochs needs: SGD's momentum makes
    # it larger from the first step on.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = (*SMALL, "--model", "small_cnn", "--no-report", "--no-monitor")
    assert train(tmp_path / "whole", *words) == 0
    out = tmp_path / "run"
    size = (tmp_path / "whole" / "checkpoint.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, hard))
    try:
        assert train(out, *words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "cannot write" in said
    assert "--resume goes on" in said
    assert "Traceback" not in said
    assert checkpoint(out)["epoch"] == 0
    assert [file.name for file in out.glob(".*")] == [".lock"]
    assert train(out, "--resume") == 0
    assert same_weights(tmp_path / "whole", out)


def test_a_folder_that_cannot_be_made(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run", *SMALL) == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said
    assert "Traceback" not in said


def test_ctrl_c_keeps_the_whole_epochs(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *SMALL, "--model", "small_models:Interrupted") == 130
    shown = capsys.readouterr()
    assert "--resume goes on" in shown.err
    assert "Not finished" in shown.out
    # An epoch has 4 steps, and the 11th is interrupted.
    assert checkpoint(tmp_path)["epoch"] == 2
    assert not json.loads((tmp_path / "report.json").read_text())["complete"]
    assert [r["epoch"] for r in read_history(tmp_path / "history.jsonl")] == [0, 0, 1, 1, 2, 2]


def test_without_matplotlib_the_rest_is_written(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert train(tmp_path, *SMALL, "--epochs", "1", "--no-report", "--no-monitor") == 0
    assert "pip install 'margin_ext[plot]'" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["complete"]
    assert "Not measured" in (tmp_path / "report.txt").read_text()
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--loss", "cross_entropy", "--beta", "1e-3", "--optimizer", "adamw"),
        ("--margin", "logit_gap", "--regularizer", "negative_ramp", "--optimizer", "adam"),
        ("--margin", "secant", "--secant-steps", "1", "--warmup", "2"),
        ("--margin", "distance", "--distance-margin-steps", "1", "--mu", "0.8", "--tau", "1"),
        ("--margin", "distance", "--distance-margin-form", "envelope", "--weight-average", "0.9"),
        ("--margin", "additive", "--additive-noise", "1", "--tau", "0.3"),
        ("--gradient", "finite_difference", "--difference-scheme", "central", "--p", "inf"),
        ("--gradient", "detached", "--classes", "all", "--precision", "bfloat16"),
        ("--gradient", "finite_difference", "--precision", "float16", "--schedule", "step"),
        ("--gradient", "finite_difference", "--compile", "aot_eager", "--input-std", "0.5"),
        ("--model", "resnet", "--batchnorm", "running", "--label-smoothing", "0.1"),
    ],
)
def test_options_reach_the_training(here: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert train(tmp_path / "whole", *SMALL, *words, "--epochs", "2", "--no-report") == 0
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "whole").values())
    settings = json.loads(checkpoint(tmp_path / "whole")["settings_json"])
    for flag, value in zip(words[::2], words[1::2], strict=True):
        option = OPTIONS[flag[2:].replace("-", "_")]
        assert settings[option.name] == option.value(value)
    # Without those words it goes another way.
    assert train(tmp_path / "usual", *SMALL, "--epochs", "2", "--no-report", "--no-monitor") == 0
    if "resnet" not in words:
        assert not same_weights(tmp_path / "whole", tmp_path / "usual")


MNIST = ("--data", "mnist", "--data-dir")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*MNIST, "nowhere"), "has neither train-images"),
        (("--data", "npz", "--data-dir", "nowhere.npz"), "no data at /"),
        (("--data", "npz", "--data-dir", "bad.npz"), "no whole npz file"),
        (("--data", "cifar10", "--data-dir", "nowhere"), "holds no CIFAR-10"),
        (("--data", "cifar10"), "not CIFAR-10's [3, 32, 32]"),
        (("--data-range", "0", "2"), "leave out --data-range"),
        (("--data", "imagenet"), "data must be one of cifar10:FOLDER, digits,"),
        (("--model", "small_models:too_few_classes"), "must return logits [B, 3], got [2, 2]"),
        (("--model", "mnist_cnn"), "mnist_cnn gets images [B, 1, 6, 6] and fails"),
        (("--difference-data-range", "1", "0"), "expected the lowest and the highest value"),
        (("--model", "vgg"), "one of small_cnn, resnet, mnist_linear"),
        (("--model", "no_such_module:f"), "cannot import"),
        (("--p", "0.5"), "p must be"),
        (("--p", "two"), "p must be a number >= 1 or"),
        (("--epochs", "0"), "epochs must be at least 1, got 0"),
        (("--epochs", "1.5"), "expected a whole number"),
        (("--regularizer", "ridge"), "regularizer must be"),
        (("--gradient", "exact"), "gradient must be one of"),
        (("--optimizer", "lbfgs"), "optimizer must be one of sgd"),
        (("--learning-rate", "-1"), "learning_rate must be above 0"),
        (("--eps-attack", "0", "1"), "expected radii above 0"),
        (("--measure-p", "1"), "measure_p must be 2 or inf"),
        (("--compile", "inductor"), "compile needs gradient finite_difference"),
        (("--device", "cuda:99"), "device cuda:99 cannot be used: "),
        (("--device", "gpu"), "device string: gpu"),
        (("--config", "nowhere.toml"), "cannot read nowhere.toml"),
        (("--config", "bad.npz"), "bad.npz is no TOML"),
    ],
)
def test_bad_input_gives_one_line_and_no_folder(
    here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    (here / "bad.npz").write_bytes(b"nonsense")
    assert train(tmp_path / "out", *SMALL, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("margin-ext train: ")
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_range_of_the_differences_has_two_ends(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "--gradient", "finite_difference", "--epochs", "1", "--no-report")
    assert train(tmp_path / "in", *words, "--difference-data-range", "0", "1") == 0
    kept = ("--config", str(tmp_path / "in" / "settings.toml"))
    assert train(tmp_path / "again", *kept) == 0
    capsys.readouterr()
    assert train(tmp_path / "out", *words, "--difference-data-range", "0.4", "0.6") == 2
    assert "outside the stated data range (0.4, 0.6)" in capsys.readouterr().err


def test_a_network_that_cannot_be_measured_is_trained_all_the_same(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "blind_models.py").write_text(
        "from torch import nn\n"
        "class Blind(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(36, 3)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x.flatten(1).round())\n"
    )
    words = ("--model", "blind_models:Blind", "--loss", "cross_entropy", "--no-monitor")
    assert train(tmp_path, *SMALL, *words) == 2
    shown = capsys.readouterr()
    assert "the trained model was not measured: the gradient of every logit gap" in shown.err
    assert "Not measured: cross-entropy" in shown.out
    assert checkpoint(tmp_path)["epoch"] == 4
    assert not json.loads((tmp_path / "report.json").read_text())["complete"]


def test_a_network_that_is_constant_for_the_moment_is_followed_on(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "zero_models.py").write_text(
        "from torch import nn\n"
        "def zero():\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n"
        "    nn.init.zeros_(model[1].weight)\n"
        "    return model\n"
    )
    words = ("--model", "zero_models:zero", "--loss", "cross_entropy", "--no-report")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert train(tmp_path, *SMALL, *words) == 0
    assert "train: warning: margins after epoch 0: the gradient" in capsys.readouterr().err
    epochs = {record["epoch"] for record in read_history(tmp_path / "history.jsonl")}
    assert epochs == {1, 2, 3, 4}
    assert weights(tmp_path)["1.weight"].abs().max() > 0
