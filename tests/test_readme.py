"""Everything that the README tells to write works as written, on small data."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from margin_ext import AverageMarginLoss
from margin_ext.command_line import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def after(diff: str) -> str:
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


def before(diff: str) -> str:
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("+"))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the README's reader has already."""
    monkeypatch.chdir(tmp_path)
    x = torch.rand(24, 1, 4, 4)
    data = TensorDataset(x, x.flatten(1)[:, :3].argmax(dim=1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3))
    return {
        "nn": nn,
        "model": model,
        "loader": DataLoader(data, batch_size=8),
        "test_loader": DataLoader(data, batch_size=8),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "AverageMarginLoss": AverageMarginLoss,
    }


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_blocks_run(index: int, names: dict[str, object]) -> None:
    exec(compile(blocks("python")[index], f"README python block {index}", "exec"), names)


def test_the_diff_runs_before_and_after(
    names: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    (diff,) = blocks("diff")
    exec(compile(before(diff), "README, before", "exec"), names)
    exec(compile(after(diff), "README, after", "exec"), names)
    assert "tensor" in capsys.readouterr().out


def test_the_table_of_options_is_complete() -> None:
    table = (ROOT / "docs" / "options.md").read_text()
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    options = inspect.signature(AverageMarginLoss).parameters
    assert set(told) == set(options)
    for names, defaults in rows:
        values = re.findall(r"`([^`]+)`", defaults)
        for name, value in zip(re.findall(r"`(\w+)`", names), values, strict=False):
            assert eval(value) == options[name].default, name


def test_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    shell = "\n".join(blocks("sh")).replace("\\\n", " ")
    calls = re.findall(r"^margin-ext (\w+)(.*?)(?:#.*)?$", shell, flags=re.MULTILINE)
    assert calls
    for command, rest in calls:
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown, f"{command} {option}"
    for target in re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for folder in re.findall(r"`((?:margin_ext|csrc|tests|benchmarks)(?:/[\w.]+)*)`", README):
        assert (ROOT / folder).exists(), folder
    for command in re.findall(r"`margin-ext (\w+)`", README):
        assert command in COMMANDS
