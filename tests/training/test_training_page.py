"""What docs/training.md tells to write works as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from margin_ext.command_line import main
from margin_ext.training.setting_table import OPTIONS
from margin_ext.training.settings_file import complete_settings, read_settings

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_settings_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(blocks("toml")[0])
    settings = complete_settings(read_settings(tmp_path / "settings.toml"))
    assert settings["gradient"] == "auto"
    assert settings["eps_attack"] == [0.5, 1.0, 2.0]


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)
        for option in words[words.index("train") :]:
            if option.startswith("--"):
                assert option in shown, option


def test_names_in_the_text_are_settings() -> None:
    told = re.findall(r"`([a-z_]+) = ", PAGE)
    assert told
    assert set(told) <= set(OPTIONS)


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    small = '"epochs": 2, "limit": 40, "measure_limit": 5, "attack_steps": 2, "distance_steps": 2'
    (block,) = blocks("python")
    assert block.count('"epochs": 2') == 1
    exec(compile(block.replace('"epochs": 2', small), "training.md", "exec"), {})
    assert (tmp_path / "runs" / "python" / "report.json").exists()
