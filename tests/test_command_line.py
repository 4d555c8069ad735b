"""The command margin-ext: its subcommands, and the doctor's report."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import subprocess
import sys
from types import ModuleType

import pytest

from margin_ext import _backend_info, command_line
from margin_ext.command_line import COMMANDS, doctor, main


def test_help_names_every_command_and_imports_none(capsys, monkeypatch):
    modules = [module for module, _ in COMMANDS.values()]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name, (module, summary) in COMMANDS.items():
        assert name in shown
        assert summary.split()[0] in shown
        assert module not in sys.modules


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_can_run(command, capsys):
    module = importlib.import_module(COMMANDS[command][0])
    assert callable(module.run)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"margin-ext {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["doctor", "--no-such-option"]])
def test_wrong_use_is_told(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: margin-ext" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch):
    module = ModuleType("interrupted_command")
    module.add_parser = lambda subparsers: subparsers.add_parser("interrupted")

    def run(arguments):
        raise KeyboardInterrupt

    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command_line.COMMANDS, "interrupted", (module.__name__, "stops"))
    assert main(["interrupted"]) == 130


def test_doctor_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "margin_ext", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["healthy"] else 1)
    assert report["cpu_library"]
    assert report["cpu_instruction_set"] in report["cpu_instruction_sets"]
    assert {extra["name"] for extra in report["extras"]} >= {"demo", "plot"}


def test_doctor_tells_what_is_missing_and_what_mends_it(capsys, monkeypatch):
    healthy = _backend_info.backend_info()
    note = _backend_info.Note("a thing is broken", "mend-it --now", needed=True)
    broken = dataclasses.replace(healthy, notes=(note,))
    monkeypatch.setattr(_backend_info, "backend_info", lambda: broken)
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: [
            "torch>=2.11",
            'pytest>=8; extra == "test"',
            'no-such-package>=3; extra == "demo"',
            "another_one; extra == 'demo'",
            "third-one; extra == 'two-words'",
        ],
    )
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "a thing is broken" in shown
    assert "mend-it --now" in shown
    assert "extra demo" in shown
    assert "extra two-words" in shown
    assert "pip install no-such-package another_one" in shown
    assert "pytest" not in shown


def test_doctor_without_installed_metadata(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    assert doctor.extras() == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_quick_and_needs_no_torch(command):
    program = (
        "import sys, time\n"
        "from margin_ext.command_line import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "except SystemExit as stopped:\n"
        "    assert stopped.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "sys.stderr.write(str(time.process_time()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stderr) < 1


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["trian"], "train"),
        (["train", "--out", "x", "--learning-rte", "1"], "--learning-rate"),
        (
            ["measure", "--model", "a:b", "--data", "digits", "--limt", "3"],
            "--limit",
        ),
        (["demo", "--epocs", "3"], "--epochs"),
    ],
)
def test_mistyped_words_get_a_suggestion(argv, near, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert f"did you mean {near}?" in capsys.readouterr().err
