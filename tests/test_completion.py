"""``margin-ext completion`` in a real shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from margin_ext.command_line import COMMANDS, command_parser, main

bash = shutil.which("bash")


@pytest.fixture
def script(capsys) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("margin-ext", *words))
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _margin_ext\n"
    ask += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run([bash, "-c", script + ask], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(bash is None, reason="no bash")
def test_bash_completes_commands_options_and_their_words(script):
    assert set(complete(script, "")) == {*COMMANDS, "--help"}
    assert complete(script, "do") == ["doctor"]
    for name in COMMANDS:
        offered = complete(script, name, "-")
        actions = command_parser(name)._actions
        assert offered == [flag for action in actions for flag in action.option_strings]
        for action in actions:
            if action.choices and action.option_strings:
                flag = action.option_strings[-1]
                assert complete(script, name, flag, "") == list(map(str, action.choices))
    assert complete(script, "measure", "--checkpoint", "") == []


def test_zsh_loads_what_runs_it(script, capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.endswith(script)
