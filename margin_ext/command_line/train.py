"""``margin-ext train``: train one network for its margin, and report what came of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_ext.training.options import OPTIONS, SECTIONS

if TYPE_CHECKING:
    from margin_ext.command_line import Subparsers
    from margin_ext.training.options import Option
    from margin_ext.training.ranks import Ranks
    from margin_ext.training.run import Run

__all__ = ["add_parser", "run"]

_FAILED = 2
_INTERRUPTED = 130


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "train",
        help="train a network for its margin, and report what came of it",
        description="Train a network, follow its margins, attack it, and keep everything in a "
        "folder. Every setting can stand in a TOML file too; the command line has the last word.",
        epilog="example: margin-ext train --data mnist --data-dir DIR --model mnist_cnn "
        "--mu 1 --tau 3 --epochs 5 --out runs/mnist",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for all that is written"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML, such as another run's"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume", action="store_true",
        help="go on with the run in --out, with its settings where none are given",
    )  # fmt: skip
    earlier.add_argument("--fresh", action="store_true", help="remove the run in --out")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, default=None,
        help="show bars (default: on a terminal)",
    )  # fmt: skip
    for section, told in SECTIONS.items():
        group = parser.add_argument_group(f"[{section}]", told)
        for option in OPTIONS.values():
            if option.section == section:
                _add(group, option)


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    shown = option.help() if callable(option.help) else option.help
    if option.default is not None:
        shown += f" (default: {_shown(option.default)})"
    # What is not given is absent, so that it does not override the file.
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": shown.replace("%", "%%")}
    if isinstance(option.default, bool):
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
        return
    if option.count != 1:
        common["nargs"] = option.count
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else "VALUE"
    group.add_argument(option.flag, metavar=metavar, **common)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, and write what came of it, whole or not."""
    from margin_ext.data import DataError
    from margin_ext.training.checkpoint import OtherSettingsError
    from margin_ext.training.ranks import started_ranks
    from margin_ext.training.run import RunExistsError
    from margin_ext.training.settings import completed

    with contextlib.ExitStack() as processes:
        try:
            settings = completed(_given(arguments))
            _prepare_torch(settings)
            ranks = processes.enter_context(started_ranks(settings["device"]))
            training_run = _new_run(arguments, settings, ranks)
        except OtherSettingsError as error:
            return _complain(f"{error}: leave them as they were, choose another --out, or --fresh")
        except (DataError, RunExistsError, ValueError, OSError, RuntimeError) as error:
            return _complain(str(error))
        return _train(training_run, arguments.progress)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the file, or of the run to go on with, and above them the command line's."""
    from margin_ext.training.run import SETTINGS
    from margin_ext.training.settings import SettingsError, read_settings

    source = arguments.config
    if source is None and arguments.resume and (arguments.out / SETTINGS).exists():
        source = arguments.out / SETTINGS
    settings = {} if source is None else read_settings(source)
    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    if arguments.resume and source is None and not given:
        raise SettingsError(
            f"there is no run to resume in {arguments.out}, and no setting to begin one with"
        )
    return {**settings, **{name: OPTIONS[name].value(value) for name, value in given.items()}}


def _prepare_torch(settings: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(settings["threads"])
    if settings["deterministic"] and torch.device(settings["device"]).type == "cuda":
        # cuBLAS reads it at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _new_run(arguments: argparse.Namespace, settings: dict[str, Any], ranks: Ranks) -> Run:
    from margin_ext.training.run import Run, claim_folder

    claim_folder(arguments.out, ranks, resume=arguments.resume, fresh=arguments.fresh)
    return Run(settings, arguments.out, ranks, fresh=arguments.fresh)


def _train(training_run: Run, progress: bool | None) -> int:
    from margin_ext.training.loop import DivergedError

    tell = _tell if training_run.ranks.first else _nothing
    status = 0
    try:
        training_run.run(tell, progress)
    except KeyboardInterrupt:
        tell("stopped: the same command with --resume goes on after the last whole epoch")
        status = _INTERRUPTED
    except DivergedError as error:
        status = _complain(str(error))
    except ValueError as error:
        what = "the trained model was not measured: " if training_run.trained else ""
        status = _complain(f"{what}{error}")
    except OSError as error:
        return _complain(
            f"cannot write: {error}; what was written before is whole, and once there is room the "
            "same command with --resume goes on from it"
        )
    if not training_run.ranks.first:
        return status
    try:
        _report(training_run)
    except OSError as error:
        return _complain(f"cannot write the report: {error}; --resume writes it again")
    return status


def _report(training_run: Run) -> None:
    sys.stdout.write(f"\n{training_run.write_report()}\n\n")
    try:
        training_run.draw()
    except ImportError as error:
        _complain(str(error))
    sys.stdout.write(f"all in {training_run.out}\n")


def _nothing(_: str) -> None:
    pass


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _complain(message: str) -> int:
    sys.stderr.write(f"margin-ext train: {message}\n")
    return _FAILED
