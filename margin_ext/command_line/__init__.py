"""The command ``margin-ext``: one module for each subcommand, imported when it is called.

A subcommand's module has two functions: ``add_parser(subparsers)`` adds its arguments, and
``run(arguments)`` does the work and returns the exit status. Its name, its module and the line
that ``margin-ext --help`` shows stand in ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from margin_ext.command_line.messages import FAILED, INTERRUPTED
from margin_ext.suggestion import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

__all__ = ["COMMANDS", "command_parser", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "completion": (
        "margin_ext.command_line.completion",
        "print what makes a shell complete this command",
    ),
    "demo": (
        "margin_ext.command_line.demo",
        "train on handwritten digits and see what promoting the margin does",
    ),
    "doctor": (
        "margin_ext.command_line.doctor",
        "tell what is installed, what is missing, and what mends it",
    ),
    "measure": (
        "margin_ext.command_line.measure",
        "measure the margins and the robust accuracy of a saved model",
    ),
    "reproduce": (
        "margin_ext.command_line.reproduce",
        "compare the authors' published figures with ours",
    ),
    "train": (
        "margin_ext.command_line.train",
        "train a network for its margin, and report what came of it",
    ),
}


def _chosen_command(argv: Sequence[str]) -> str | None:
    """Return the subcommand, which is the first argument that is no option."""
    words = [word for word in argv if not word.startswith("-")]
    return words[0] if words and words[0] in COMMANDS else None


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest word for a mistyped one."""

    known: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        mistyped = re.search(r"(?:unrecognized arguments:|invalid choice:) '?([\w-]+)", message)
        super().error(message + (suggestion(mistyped[1], self.known) if mistyped else ""))


def _build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen subcommand's module is imported."""
    parser = _Parser(prog="margin-ext", description="Measure and train the margin of classifiers.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        if name == chosen:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    options = () if chosen is None else subparsers.choices[chosen]._option_string_actions
    parser.known = (*COMMANDS, *options)
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one subcommand.

    Example:
        >>> command_parser("measure").prog
        'margin-ext measure'
    """
    action = next(
        action
        for action in _build_parser(name)._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parser: argparse.ArgumentParser = action.choices[name]
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``margin-ext``.

    Args:
        argv: The arguments after the program's name; those of the process if not given.

    Returns:
        The exit status.

    Example:
        >>> main(["completion", "bash"])
        _margin_ext() {
        ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = _chosen_command(words)
    arguments = _build_parser(chosen).parse_args(words)
    module, _ = COMMANDS[arguments.command]
    try:
        return int(importlib.import_module(module).run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone. The interpreter must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
