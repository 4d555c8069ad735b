"""``margin-ext train``: train one network for its margin, and report what came of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_ext.command_line.messages import FAILED, INTERRUPTED, complain, plain_warnings, tell
from margin_ext.training.setting_table import OPTIONS, SECTIONS

if TYPE_CHECKING:
    from margin_ext.command_line import Subparsers
    from margin_ext.training import Trial
    from margin_ext.training.setting_table import Option

__all__ = ["add_parser", "run"]


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
        help="go on with the run in --out, with its settings where none are given; with more "
        "--epochs it becomes longer",
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
    from margin_ext.ranks import started_ranks
    from margin_ext.training import OtherSettingsError, RunExistsError, trial_from_settings

    with contextlib.ExitStack() as held:
        held.enter_context(plain_warnings("train"))
        try:
            settings = _given(arguments)
            ranks = held.enter_context(started_ranks(settings.get("device")))
            trial = trial_from_settings(
                settings, arguments.out, ranks, resume=arguments.resume, fresh=arguments.fresh
            )
        except OtherSettingsError as error:
            return complain(
                "train", f"{error}: leave them as they were, choose another --out, or --fresh"
            )
        except (RunExistsError, ValueError, OSError, RuntimeError) as error:
            return complain("train", error)
        return _train(trial, arguments.progress)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the file, or of the run to go on with, and above them the command line's."""
    from margin_ext.training.settings_file import SettingsError, read_settings
    from margin_ext.training.trial import CHECKPOINT, kept_settings

    source = arguments.config
    if source is None and arguments.resume:
        source = kept_settings(arguments.out)
    settings = {} if source is None else read_settings(source)
    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    if arguments.resume and source is None and not given:
        raise SettingsError(
            f"{arguments.out} has a checkpoint and no settings.toml: give the run's settings too"
            if (arguments.out / CHECKPOINT).exists()
            else f"there is no run to resume in {arguments.out}, and no setting to begin one with"
        )
    return {**settings, **{name: OPTIONS[name].value(value) for name, value in given.items()}}


def _train(trial: Trial, progress: bool | None) -> int:
    from margin_ext.output.exclusive import InUseError
    from margin_ext.together import RankFailedError
    from margin_ext.training import DivergedError
    from margin_ext.training.trial import CHECKPOINT

    main = trial.ranks.is_main
    status = 0
    try:
        trial.run(tell if main else lambda _: None, progress)
    except KeyboardInterrupt:
        if main:
            tell("stopped: the same command with --resume goes on from the last checkpoint")
        status = INTERRUPTED
    except InUseError as error:
        return complain("train", error) if main else FAILED
    except RankFailedError:
        return FAILED  # that rank tells why
    except (DivergedError, ValueError) as error:
        what = "the trained model was not measured: " if trial.loop.finished else ""
        status = complain("train", f"{what}{error}")
    except OSError as error:
        goes_on = (
            "; what was written before is whole, and the same command with --resume goes on from it"
            if (trial.folder / CHECKPOINT).is_file()
            else ""
        )
        return complain("train", f"cannot write: {error}{goes_on}")
    if not main:
        return status
    try:
        return max(status, _report(trial))
    except OSError as error:
        return complain("train", f"cannot write the report: {error}; --resume writes it again")


def _report(trial: Trial) -> int:
    from margin_ext.training import TrialsReport

    report = TrialsReport([trial], trial.folder)
    report.save()
    sys.stdout.write(f"\n{report.table()}\n\n")
    try:
        report.save_figure()
    except ImportError as error:
        complain("train", error)
    sys.stdout.write(f"all in {trial.folder}\n")
    return 0
