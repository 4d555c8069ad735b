"""The registry of data sources: one file adds one, and every command knows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from margin_ext.command_line import main
from margin_ext.data import DataError, data_forms, data_source, data_sources, load_data, load_part
from margin_ext.data.data_source import find_data_source

# A data source of somebody's own, in one file.
STRIPES = """
import torch
from torch import nn
from margin_ext.data import DataSource, register_data_source
from margin_ext.data.image_data import ImageData

@register_data_source
class Stripes(DataSource):
    name = "stripes"
    summary = "bright rows"
    radii = {2: (0.25, 0.75), "inf": (0.125,)}

    def load(self, place):
        def part(count, seed):
            generator = torch.Generator().manual_seed(seed)
            images = 0.4 * torch.rand(count, 1, 6, 6, generator=generator)
            labels = torch.arange(count) % 3
            images[torch.arange(count), 0, 2 * labels] += 0.5
            return images, labels
        return ImageData("stripes", part(60, 0), part(12, 1), part(18, 2), classes=3)

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

def parts(part=None):
    whole = Stripes().load("")
    return {"train": whole.train, "test": whole.test}
"""


@pytest.fixture
def stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stripes_data.py").write_text(STRIPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(data_source, "_REGISTERED", dict(data_sources()))
    monkeypatch.delitem(sys.modules, "stripes_data", raising=False)
    __import__("stripes_data")
    return tmp_path


def test_a_source_in_one_file_is_trained_on_and_measured(
    stripes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "stripes", "--model", "small_cnn", "--epochs", "2", "--no-monitor"]
    words += ["--measure-limit", "6", "--attack-steps", "2", "--distance-steps", "2"]
    assert main(["train", "--out", "run", *words]) == 0
    report = json.loads((stripes / "run" / "report.json").read_text())
    assert report["robust_accuracy"]["eps"] == [0.25, 0.75]
    capsys.readouterr()
    assert main(["measure", "--model", "stripes_data:network", "--data", "stripes"]) == 0
    assert "18 samples" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "stripes" in capsys.readouterr().out.replace("\n", " ")
    assert main(["measure", "--model", "stripes_data:network", "--data", "stripe"]) == 2
    assert "did you mean stripes?" in capsys.readouterr().err


def test_a_callable_serves_both_commands(stripes: Path) -> None:
    data = load_data("stripes_data:parts")
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [54, 6, 18]
    assert torch.equal(load_part("stripes_data:parts")[0], data.test[0])
    assert len(load_part("stripes_data:parts", "train")[1]) == 60
    with pytest.raises(DataError, match="returns no validation, only train, test"):
        load_part("stripes_data:parts", "validation")
    with pytest.raises(DataError, match="to train, stripes_data:network must return"):
        load_data("stripes_data:network")


def test_every_source_says_what_it_needs() -> None:
    for name, source in data_sources().items():
        assert source.name == name
        assert source.summary
        assert name in data_forms()
        assert set(source.radii) == {2, "inf"}
        if source.place and ":" not in name:
            with pytest.raises(DataError, match=f"{name} needs a place: {name}:{source.place}"):
                load_data(name)
    assert {"cifar10", "digits", "mnist", "module:callable", "npz"} <= set(data_sources())


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("digits", "digits", ""),
        ("mnist:/a:b", "mnist", "/a:b"),
        ("npz:some file", "npz", "some file"),
        ("a/b.npz", "npz", "a/b.npz"),
        ("package.module:made", "module:callable", "package.module:made"),
    ],
)
def test_what_a_text_names(text: str, name: str, place: str) -> None:
    source, found = find_data_source(text)
    assert (source.name, found) == (name, place)


def test_a_place_is_given_once() -> None:
    with pytest.raises(DataError, match="says where the data are; /b says it a second time"):
        load_data("mnist:/a", "/b")
    with pytest.raises(DataError, match="digits needs no place, got /b"):
        load_data("digits", "/b")


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("inputs", "labels")])
def test_old_keys_are_read_with_a_message(tmp_path: Path, keys: tuple[str, str]) -> None:
    x, y = np.random.default_rng(0).random((9, 5)), np.arange(9) % 3
    np.savez(tmp_path / "old.npz", **{keys[0]: x, keys[1]: y})
    with pytest.warns(FutureWarning, match="now they are called inputs and target"):
        inputs, target = load_part(str(tmp_path / "old.npz"))
    assert torch.equal(inputs, torch.from_numpy(x))
    assert target.tolist() == y.tolist()


def test_old_keys_of_parts_are_read_with_a_message(tmp_path: Path) -> None:
    x, y = np.zeros((20, 4, 4), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "old.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    with pytest.warns(FutureWarning, match="called (train|test)_inputs and (train|test)_target"):
        data = load_data("npz", tmp_path / "old.npz")
    assert data.shape == (1, 4, 4)


def test_parts_of_one_file_are_measured_and_trained_on_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8), np.arange(30) % 3
    np.savez(
        tmp_path / "d.npz", train_inputs=x, train_target=y, test_inputs=x[:7], test_target=y[:7]
    )
    data = load_data(str(tmp_path / "d.npz"))
    for part in ("train", "validation", "test"):
        inputs, target = load_part(str(tmp_path / "d.npz"), part)
        assert torch.equal(inputs, getattr(data, part)[0])
        assert torch.equal(target, getattr(data, part)[1])
    assert data.shape == (3, 6, 5)


def test_the_registry_needs_no_torch() -> None:
    program = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('margin_ext')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['margin_ext'] = package\n"
        "from margin_ext.data.data_source import data_forms\n"
        "assert 'mnist:FOLDER' in data_forms()\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'numpy' not in sys.modules\n"
    )
    import margin_ext

    package = str(Path(margin_ext.__file__).parent)
    subprocess.run([sys.executable, "-c", program, package], check=True)


def write_image_folders(folder: Path, *parts: str, size: tuple[int, int] = (6, 5)) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part in parts or (".",):
        for name in ("ants", "bees", "cats"):
            (folder / part / name).mkdir(parents=True)
            for number in range(10):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def test_folders_of_images(tmp_path: Path) -> None:
    write_image_folders(tmp_path, "train", "test")
    data = load_data("images", tmp_path)
    assert data.shape == (3, 6, 5)
    assert data.classes == 3
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [27, 3, 30]
    assert data.validation[1].tolist() == [0, 1, 2]
    raw = np.asarray(pytest.importorskip("PIL.Image").open(tmp_path / "test" / "bees" / "3.png"))
    assert torch.equal(data.test[0][13], torch.from_numpy(raw.copy()).permute(2, 0, 1) / 255)
    assert torch.equal(load_part(f"images:{tmp_path}")[0], data.test[0])


def test_folders_of_classes_alone_are_measured(tmp_path: Path) -> None:
    write_image_folders(tmp_path)
    inputs, target = load_part("images", place=tmp_path)
    assert inputs.shape == (30, 3, 6, 5)
    assert target.bincount().tolist() == [10, 10, 10]
    with pytest.raises(DataError, match="must hold folders train and test"):
        load_data("images", tmp_path)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder for each of at least 2 classes; got none"):
        load_part("images", place=tmp_path / "nowhere")
    write_image_folders(tmp_path, "train", "test")
    broken = tmp_path / "test" / "cats" / "9.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"9\.png is no image that can be read"):
        load_data("images", tmp_path)
    write_image_folders(tmp_path / "other", size=(4, 4))
    broken.write_bytes((tmp_path / "other" / "ants" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"9\.png has 4 x 4 pixels"):
        load_data("images", tmp_path)
    broken.write_bytes(whole)
    (tmp_path / "test" / "dogs").mkdir()
    with pytest.raises(DataError, match="classes that train has not: dogs"):
        load_data("images", tmp_path)
