"""``margin-ext demo``: see what promoting the margin does to a network's robustness."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from margin_ext.command_line.messages import INTERRUPTED, complain, plain_warnings, tell

if TYPE_CHECKING:
    from margin_ext.command_line import Subparsers
    from margin_ext.data.image_data import ImageData
    from margin_ext.training import Trial
    from margin_ext.training.demo_trials import DemoSettings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="train on handwritten digits and see what promoting the margin does",
        description="Train a small network on handwritten digits three times, from the same "
        "weights: with plain cross-entropy, with the authors' regularizer (logit gap and "
        "orthogonality), and with the first-order margin. Then attack all of them.",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR",
        help="MNIST's four idx files, gzipped or not; default: scikit-learn's digits",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"),
        help="folder for everything that is written (default: %(default)s); a run that was "
        "stopped goes on from what it left there",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="do not go on from what is in --out")
    parser.add_argument("--epochs", type=_positive, help="of each training")
    parser.add_argument("--mu", type=float, help="weight of the first-order regularizer")
    parser.add_argument("--tau", type=float, help="margin up to which it pushes, in pixels")
    parser.add_argument(
        "--eps", nargs="+", type=float, help="l2 radii of the attacks, in pixels of [0, 1]"
    )
    parser.add_argument("--limit", type=_positive, help="only the first so many training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.add_argument(
        "--threads", type=_positive,
        help="of PyTorch on the CPU (default: 1 for the digits, whose batches are small; "
        "PyTorch's own choice for MNIST)",
    )  # fmt: skip
    parser.add_argument(
        "--part", choices=("test", "validation"), default="test",
        help="images that margins and attacks are reported on; choose settings on validation",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works: means nothing"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, and write what came of it, whole or not."""
    import torch

    from margin_ext.training import DivergedError, OtherSettingsError

    if arguments.threads is None and arguments.data_dir is None:
        torch.set_num_threads(1)
    elif arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with plain_warnings("demo"):
        try:
            trials = _trials(arguments)
        except OtherSettingsError as error:
            return complain("demo", f"{error}: choose another --out, or add --fresh")
        except (ValueError, OSError, RuntimeError) as error:
            return complain("demo", error)
        status = 0
        try:
            for number, trial in enumerate(trials, 1):
                where = f"{number} of {len(trials)}"
                if trial.complete:
                    tell(f"{where}: {trial.title}: done before")
                else:
                    trial.run(lambda line, where=where: tell(f"{where}: {line}"))  # type: ignore[misc]
        except KeyboardInterrupt:
            tell("stopped: here is what was computed; the same command goes on from it")
            status = INTERRUPTED
        except (DivergedError, OSError, ValueError) as error:
            status = complain("demo", error)
        try:
            _write(trials, arguments.out, arguments.quick)
        except OSError as error:
            return complain("demo", f"cannot write the report: {error}")
        return status


def _trials(arguments: argparse.Namespace) -> list[Trial]:
    from margin_ext.training.demo_trials import demo_trials

    data, settings = _data_and_settings(arguments)
    out, device = arguments.out, arguments.device
    return demo_trials(data, settings, out, device=device, fresh=arguments.fresh)


def _data_and_settings(arguments: argparse.Namespace) -> tuple[ImageData, DemoSettings]:
    from dataclasses import replace

    from margin_ext.data import load_data
    from margin_ext.training.demo_trials import DIGITS, MNIST

    if arguments.data_dir is None:
        data, settings = load_data("digits"), DIGITS
    else:
        data, settings = load_data("mnist", arguments.data_dir), MNIST
    if arguments.quick:
        data = data.limited(train=200, held_out=100)
        settings = replace(settings, epochs=3, batch_size=20, samples=50, attack_steps=5)
    data = data.limited(train=arguments.limit, held_out=None)
    given = {
        **{name: getattr(arguments, name) for name in ("epochs", "mu", "tau", "seed", "part")},
        "eps": tuple(sorted(arguments.eps)) if arguments.eps else None,
    }
    return data, replace(settings, **{k: v for k, v in given.items() if v is not None})


def _write(trials: list[Trial], out: Path, quick: bool) -> None:
    from margin_ext.training import TrialsReport

    report = TrialsReport(trials, out)
    written = report.save()
    sys.stdout.write(f"\n{report.table()}\n\n")
    try:
        written.append(report.save_figure())
    except ImportError as error:
        complain("demo", error)
    for path in written:
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(f"{out}/*/checkpoint.pt, history.jsonl, measured.json\n")
    if quick:
        tell("--quick shows that the program runs: these networks have learned next to nothing")
