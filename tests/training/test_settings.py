"""Settings files: what is read, what is refused, what is written."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from margin_ext import Additive, Distance, FiniteDifference, LossOptions, Secant
from margin_ext.training.recipe import Recipe
from margin_ext.training.setting_table import OPTIONS, SECTIONS, defaults
from margin_ext.training.settings_file import (
    SettingsError,
    complete_settings,
    read_settings,
    settings_text,
)

# Not for training by mean loss over a batch of plain labels.
LEFT_OUT = {"weight", "ignore_index", "reduction", "aggregation", "validate"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_has_every_option_with_its_own_default() -> None:
    owners = {
        LossOptions: "",
        Recipe: "",
        FiniteDifference: "difference_",
        Secant: "secant_",
        Distance: "distance_margin_",
        Additive: "additive_",
    }
    for owner, prefix in owners.items():
        for name, parameter in inspect.signature(owner).parameters.items():
            if name in LEFT_OUT or (name == "data_range" and owner is not FiniteDifference):
                continue
            option = OPTIONS[prefix + name]
            if name not in ("epochs", "learning_rate"):
                assert option.default == parameter.default, name
            if option.choices:
                assert option.choices == get_args(get_type_hints(owner)[name])
            assert option.help, name
    assert {option.section for option in OPTIONS.values()} == set(SECTIONS)
    assert all(o.value(o.default) == o.default for o in OPTIONS.values() if o.default is not None)


def test_flat_and_in_sections_are_the_same(tmp_path: Path) -> None:
    flat = read_settings(written(tmp_path, "mu = 2\nbatch_size = 8\neps-attack = [1, 0.5]"))
    text = "[loss]\nmu = 2.0\n[train]\nbatch-size = 8\n[measure]\neps_attack = [0.5, 1.0]"
    assert read_settings(written(tmp_path, text)) == flat
    assert flat == {"mu": 2.0, "batch_size": 8, "eps_attack": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1", "unknown key learning_rat; did you mean learning_rate?"),
        ("[train]\nepoch = 1", "unknown key epoch; did you mean epochs?"),
        ("[optimiser]\nmomentum = 0.5", r"unknown section \[optimiser\]; did you mean optimizer?"),
        ("zzz = 1", "unknown key zzz; known are data, "),
        ("[data]\nmu = 1", r"mu belongs to \[loss\], not to \[data\]"),
        ("mu = 1\n[loss]\nmu = 2", "has mu twice"),
        ("epochs = true", "epochs: expected a number, got True"),
        ("epochs = 2.5", "epochs: expected a whole number, got 2.5"),
        ("monitor = 1", "monitor: expected true or false, got 1"),
        ("model = 3", "model: expected a word, got 3"),
        ("data_range = [1, 0]", "data_range: expected the lowest and the highest value"),
        ("precision = 'float8'", "precision must be one of float32, bfloat16, float16"),
        ("epochs = ", "is no TOML"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")) as told:
        read_settings(written(tmp_path, text))
    assert "settings.toml" in str(told.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is no TOML"):
        read_settings(path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    odd = {
        "data_dir": '/a "b" \\ ü \t\x7f',
        "data_range": [-1.5, float(2**70)],
        "input_std": [0.1, 1e-7],
        "p": "inf",
        "mu": 1 / 3,
        "tau": float("inf"),
        "classes": 3,
        "eps_attack": [1e-3],
        "flip": True,
        "seed": -5,
    }
    settings = {**defaults(), **odd}
    text = settings_text(settings, "two\nlines")
    assert text.startswith("# two\n# lines\n")
    found = read_settings(written(tmp_path, text))
    assert found == {name: value for name, value in settings.items() if value is not None}
    for name, value in found.items():
        assert type(value) is type(settings[name]), name


def test_what_is_not_given_follows_from_the_rest(tmp_path: Path) -> None:
    full = complete_settings(
        {"data": "mnist", "data_dir": "here", "optimizer": "adamw", "p": "inf"}
    )
    assert full["learning_rate"] == 1e-3
    assert full["measure_p"] == "inf"
    assert full["eps_attack"] == [0.1, 0.2, 0.3]
    assert full["data_dir"] == str(Path.cwd() / "here")
    assert full["threads"] == torch.get_num_threads()
    # Complete: nothing more follows from what is written.
    assert complete_settings(read_settings(written(tmp_path, settings_text(full, "")))) == full
    assert complete_settings({"p": 3.0})["measure_p"] == 2


def test_a_recipe_gives_what_is_not_given() -> None:
    full = complete_settings({"recipe": "robust", "radius": 2.0, "adversarial_steps": 7})
    assert full["loss"] == "adversarial"
    assert full["adversarial_eps"] == 2.5
    assert full["adversarial_steps"] == 7
    assert full["adversarial_warmup"] == 100
    assert full["eps_attack"] == [1.0, 2.0]
    for alone in ({"recipe": "robust"}, {"radius": 1.0}):
        with pytest.raises(SettingsError, match="recipe and radius need each other"):
            complete_settings(alone)
    with pytest.raises(SettingsError, match="radius must be above 0, got -1"):
        complete_settings({"recipe": "robust", "radius": -1.0})
