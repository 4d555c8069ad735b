"""``margin-ext completion``: what a shell needs to complete the command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from margin_ext.command_line import Subparsers

__all__ = ["add_parser", "run"]

# zsh runs bash's completions.
_HEAD = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}

_SCRIPT = """\
_margin_ext() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local command="" words="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${{COMP_WORDS[i]}}" in
      {commands}) command="${{COMP_WORDS[i]}}"; break ;;
    esac
  done
  case "$command $before" in
{choices}
    *) case "$command" in
{options}
         "") words="{names} --help" ;;
       esac
       # Words that begin no option are files, which the shell completes itself.
       if [ -n "$command" ] && [[ "$word" != -* ]]; then words=""; fi ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _margin_ext margin-ext
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "completion",
        help="print what makes a shell complete this command",
        description="Print a script that makes a shell complete margin-ext.",
        epilog='for every new shell, in ~/.bashrc: eval "$(margin-ext completion bash)"',
    )
    parser.add_argument("shell", choices=sorted(_HEAD))


def run(arguments: argparse.Namespace) -> int:
    """Write the script; it holds the options that the commands have now."""
    from margin_ext.command_line import COMMANDS, command_parser

    choices, options = [], []
    for name in COMMANDS:
        actions = command_parser(name)._actions
        words = " ".join(flag for action in actions for flag in action.option_strings)
        options.append(f'         {name}) words="{words}" ;;')
        for action in actions:
            if action.choices is not None and action.option_strings:
                places = " | ".join(f'"{name} {flag}"' for flag in action.option_strings)
                listed = " ".join(map(str, action.choices))
                choices.append(f'    {places}) words="{listed}" ;;')
    script = _SCRIPT.format(
        commands=" | ".join(COMMANDS),
        names=" ".join(COMMANDS),
        choices="\n".join(choices),
        options="\n".join(options),
    )
    sys.stdout.write(_HEAD[arguments.shell] + script)
    return 0
