from __future__ import annotations

import gzip
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from margin_ext.command_line import main
from margin_ext.models.authors_models import AUTHORS_MODELS, linear_classifier
from margin_ext.models.checkpoint import load_checkpoint
from margin_ext.output.exclusive import exclusive

MODULE = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

class Wrong(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        self.kind = kind
    def forward(self, x):
        z = self.layer(x.flatten(1))
        return {"shape": z.unsqueeze(1), "constant": 0 * z, "nan": z / 0}[self.kind]

def wrong_shape():
    return Wrong("shape")

def constant():
    return Wrong("constant")

def nan():
    return Wrong("nan")

def no_module():
    return 3

def raising():
    raise RuntimeError("no weights")

class Failing(nn.Module):
    def forward(self, x):
        return {}["logits"]

def failing():
    return Failing()

def halves():
    return torch.rand(40, 1, 4, 4), torch.arange(40) + 0.5

def data():
    torch.manual_seed(1)
    return torch.rand(40, 1, 4, 4), torch.arange(40) % 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def measure(*words: str) -> int:
    return main(["measure", *words])


def test_measure_prints_and_saves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--model", "my_models:good", "--data", "my_models:data", "--p", "2", "inf",
        "--bounds", "minimum_distance", "sampled", "--points", "16", "--attack", "0.1", "0.3",
        "--steps", "4", "--data-range", "0", "1", "--out", "results",
    ]  # fmt: skip
    assert measure(*words) == 0
    printed = capsys.readouterr().out
    assert "l2 first-order margin" in printed
    assert "PGD on the gap" in printed
    report = json.loads((here / "results" / "report.json").read_text())
    assert report["count"] == 40
    assert report["exact"]
    for name in ("report.csv", "report.npz", "robust_accuracy_linf.json", "partial.npz"):
        assert (here / "results" / name).exists()
    # A second call finds everything done and prints the same table.
    assert measure(*words) == 0
    assert capsys.readouterr().out == printed


def test_checkpoints_and_npz_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, here / "c.pt")
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    with torch.no_grad():
        y = model(torch.from_numpy(x).float() / 255).argmax(dim=1).numpy()
    np.savez(here / "d.npz", inputs=x, target=y)
    assert measure("--model", "my_models:good", "--checkpoint", "c.pt", "--data", "d.npz") == 0
    assert "accuracy 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "my_models:wrong_shape"], "must return logits [B, C]"),
        (["--model", "my_models:constant"], "gradient of every logit gap"),
        (["--model", "my_models:nan"], "NaN or infinite logits"),
        (["--model", "my_models:no_module"], "must give a torch.nn.Module"),
        (["--model", "my_models:absent"], "has no absent"),
        (["--model", "no_such_module:f"], "cannot import"),
        (["--model", "resnet9000"], "model must be module:callable"),
        (["--data", "nonsense"], "data must be"),
        (["--data", "absent.npz"], "no data at"),
        (["--data", "bad.npz"], "no whole npz file"),
        (["--data", "mnist:nowhere"], "has neither"),
        (["--data-range", "0", "0.5"], "outside the stated data range"),
        (["--checkpoint", "absent.pt"], "no checkpoint at"),
        (["--checkpoint", "other.pt"], "does not fit the model: missing 1.bias"),
        (["--checkpoint", "bad.npz"], "no checkpoint of tensors"),
        (["--classes", "most"], "classes must be"),
        (["--p", "0.3"], "p must be"),
        (["--bounds", "minimum_distance", "--p", "3"], "p = 1, p = 2 and p = inf"),
        (["--threads", "0"], "threads must be"),
        (["--device", "gpu"], "device gpu cannot be used here"),
        (["--device", "meta"], "device meta cannot be used here"),
        (["--model", "my_models:raising"], "could not be built: RuntimeError: no weights"),
        (["--model", "my_models:failing"], "fails on inputs [32, 1, 4, 4]"),
        (["--model", "broken:f"], "cannot import broken: SyntaxError"),
        (["--data", "my_models:halves"], "whole numbers, class indices, got 0.5 at sample 0"),
        (["--data", "cut.npz"], "cut.npz is no whole npz file"),
        (["--checkpoint", "pipe.pt"], "pipe.pt is a pipe, not a checkpoint"),
        (["--out", "bad.npz"], "bad.npz"),
        (["--seed", "-1"], "seed must be"),
        (["--input-std", "0"], "input_std must be"),
    ],
)
def test_bad_input_gives_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (here / "bad.npz").write_bytes(b"nonsense")
    (here / "broken.py").write_text("def f(:")
    np.savez(here / "whole.npz", inputs=np.zeros((3, 1, 4, 4)), target=np.arange(3))
    (here / "cut.npz").write_bytes((here / "whole.npz").read_bytes()[:-40])
    os.mkfifo(here / "pipe.pt")
    torch.save(linear_classifier(16, 3).state_dict(), here / "other.pt")
    defaults = {"--model": "my_models:good", "--data": "my_models:data"}
    for name, value in defaults.items():
        if name not in words:
            words = [*words, name, value]
    assert measure(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_named_models_get_shape_and_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).random((20, 8, 8, 3)).astype("f4")
    np.savez(here / "nhwc.npz", inputs=x, target=np.arange(20) % 4)
    assert measure("--model", "small_cnn", "--data", "nhwc.npz", "--limit", "20") == 0
    captured = capsys.readouterr()
    assert "20 samples" in captured.out
    assert "small_cnn has random weights" in captured.err


def test_the_working_folder_hides_no_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert measure("--model", "colorsys:rgb_to_hsv", "--data", "digits") == 2
    assert "wrong one" not in capsys.readouterr().err


def test_a_second_run_in_a_folder_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--model", "my_models:good", "--data", "my_models:data", "--out", "results"
    (here / "results").mkdir()
    with exclusive(here / "results"):
        assert measure(*words) == 2
    assert "another run is writing to results" in capsys.readouterr().err
    assert measure(*words) == 0


def test_changed_code_is_no_old_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 3)
    def forward(self, x):
        return self.layer(SCALE * x.flatten(1))
"""
    words = "--data", "my_models:data", "--out", "results"
    (here / "first_version.py").write_text(code.replace("SCALE", "1.0"))
    (here / "second_version.py").write_text(code.replace("SCALE", "2.0"))
    assert measure("--model", "first_version:Net", *words) == 0
    capsys.readouterr()
    assert measure("--model", "second_version:Net", *words) == 2
    assert "holds results of another model" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    model = linear_classifier(16, 3)
    before = model.fc.weight.detach().clone()
    torch.save({"model": linear_classifier(16, 4).state_dict()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"fc.weight has shape \(4, 16\), the model needs"):
        load_checkpoint(model, tmp_path / "c.pt")
    assert torch.equal(model.fc.weight, before)


def test_checkpoints_cannot_run_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    torch.save({"model": Bomb()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="no checkpoint of tensors"):
        load_checkpoint(linear_classifier(), tmp_path / "c.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", sorted(AUTHORS_MODELS))
def test_the_authors_architectures(name: str) -> None:
    shape = (2, 3, 32, 32) if name.startswith("cifar") else (2, 1, 28, 28)
    model = AUTHORS_MODELS[name]().eval()
    assert model(torch.rand(shape)).shape == (2, 10)
    if name == "mnist_cnn":
        assert sum(p.numel() for p in model.parameters()) == 312_202


def write_idx(path: Path, values: np.ndarray) -> None:  # type: ignore[type-arg]
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_reproduce_tells_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "--authors", str(tmp_path), "--mnist", str(tmp_path)]
    assert main(words) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    for name, build in (
        ("MNISTLR_01000", "mnist_linear"),
        ("MNISTCNN_00200", "mnist_cnn"),
        ("MNISTCNN_reg_00200", "mnist_cnn"),
    ):
        torch.save(
            {"model_state_dict": AUTHORS_MODELS[build]().state_dict(), "test_acc": 0.5},
            tmp_path / f"{name}.tar",
        )
    assert main(words) == 2
    assert "has neither" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(10_000, dtype=np.uint8) % 10)
    assert main([*words, "--parts", "everything"]) == 2
    assert "unknown parts everything" in capsys.readouterr().err
    # Other weights than the authors': the figures come out different, and the status says so.
    out = tmp_path / "out"
    assert main([*words, "--parts", "linear", "weights", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "linear/signed_l2" in captured.out
    assert "disagreeing: linear/accuracy" in captured.err
    assert sorted(file.name for file in out.glob("*.json")) == ["linear.json", "weights.json"]
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b cut off")
    assert main(words) == 2
    assert "no whole gzip file" in capsys.readouterr().err
